"""The command line: parse, call one stage, print. No logic.

Data goes to stdout, everything about the run to stderr. Heavy packages are imported inside the commands, so that
`--help` answers at once.
"""

from __future__ import annotations

import os
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from ds4export.engine.command import build, export_command
from ds4export.errors import Ds4Error, RuntimeInputError
from ds4export.options import (
    ArtefactArgument,
    BackendOption,
    CacheOption,
    CheckpointOption,
    EngineOption,
    JsonFlag,
    PluginsOption,
    ThreadsOption,
)


class _Commands(TyperGroup):
    """How every command ends when it does not end well, in one place."""

    def invoke(self, ctx: Any) -> Any:
        """Refusals are printed in full and without a traceback, exit code 1; Ctrl-C gives 130, a closed pipe 141."""
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
        except Ds4Error as error:
            sys.stderr.write(f"error: {error}\n")
            sys.exit(1)
        except KeyboardInterrupt:
            sys.stderr.write("interrupted\n")
            sys.exit(130)
        except BrokenPipeError:
            # What is still buffered has nowhere to go; the interpreter would complain when it exits.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(141)
        return result


app = typer.Typer(
    name="ds4export",
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Compile DeepSeek-V4 checkpoints to ONNX and engines, run them, and prove every stage.\n\n"
    "Start: ds4export inspect CHECKPOINT, then ds4export export CHECKPOINT -o ARTEFACT, "
    "then ds4export verify ARTEFACT and ds4export generate ARTEFACT 'your prompt'.",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"ds4export {version('ds4export')}\n")
        raise typer.Exit


@app.callback()
def _program(
    _: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit"
        ),
    ] = False,
) -> None:
    pass


@app.command()
def inspect(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="CHECKPOINT",
            help="Folder with config.json and the shards, or an engine that `build` wrote",
        ),
    ],
    as_json: JsonFlag = False,
) -> None:
    """Say what a checkpoint is, and whether it is complete.

    Variant, layers by kind, parameters, bytes by dtype; only headers are read. Of an engine: what is in it, which
    TensorRT wants it, and which GPUs it was built for.
    """
    from ds4export.engine.inspect import summarise_folder
    from ds4export.report import print_json, print_line

    summary = summarise_folder(path)
    if as_json:
        print_json(summary.to_json())
        return
    for line in summary.lines():
        print_line(line)


@app.command()
def synth(
    path: Annotated[
        Path, typer.Argument(metavar="DIR", help="Folder to write; must not exist, or be empty")
    ],
    preset: Annotated[
        str, typer.Option("--preset", metavar="NAME", help="tiny, flash-slice or pro-slice")
    ] = "tiny",
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Same seed, same bytes")] = 0,
) -> None:
    """Write a random checkpoint in the official format.

    To try real widths on any machine: flash-slice and pro-slice have those of the released models.
    """
    from ds4export.checkpoint.command import synth_command

    synth_command(path, preset, seed)


@app.command()
def export(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="CHECKPOINT", help="Folder with config.json and the shards")
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", metavar="ARTEFACT", help="Folder to create; must not exist yet"
        ),
    ],
    numerics: Annotated[
        str,
        typer.Option(
            "--numerics",
            metavar="NAME",
            help="official: every rounding of the released code, what engines run; "
            "float32: no activation is rounded, to compare with other programs",
        ),
    ] = "official",
    max_context: Annotated[
        int | None,
        typer.Option(
            "--max-context",
            metavar="N",
            help="Tokens per sequence that a runtime makes room for by default  [default: 8192]",
        ),
    ] = None,
    max_batch: Annotated[
        int | None,
        typer.Option(
            "--max-batch",
            metavar="B",
            help="Sequences that a runtime holds at once by default  [default: 4]",
        ),
    ] = None,
    layers: Annotated[
        str | None,
        typer.Option(
            "--layers",
            metavar="A:B",
            help="Only layers A to B-1; streams go in where A > 0 and out where B is not the end",
        ),
    ] = None,
    self_contained: Annotated[
        bool,
        typer.Option(
            "--self-contained",
            help="Copy the weights too: a folder that any ONNX Runtime program opens",
        ),
    ] = False,
    recipe: Annotated[
        Path | None,
        typer.Option(
            "--build",
            metavar="RECIPE",
            help="Then build the engine of engines/<name>.toml, into ARTEFACT-engine",
        ),
    ] = None,
) -> None:
    """Export a checkpoint to ONNX.

    Writes a folder with graphs, manifest and tokenizer. Weights are not copied: the folder points into the
    checkpoint, which has to stay. If it moves, every command that opens the folder takes --checkpoint DIR. Every
    tensor of the checkpoint is used, or named in manifest.json with the reason. An interrupted export leaves
    nothing that looks finished.

    Example: ds4export export DeepSeek-V4-Flash -o out/flash, then ds4export verify out/flash
    """
    if numerics not in ("official", "float32"):
        raise RuntimeInputError(
            "unknown --numerics", found=numerics, expected="official or float32"
        )
    from ds4export.export import ExportOptions, parse_layers

    chosen: dict[str, Any] = {
        "max_context": max_context,
        "max_batch": max_batch,
        "layers": parse_layers(layers) if layers is not None else None,
    }
    options = ExportOptions(
        official=numerics == "official",
        self_contained=self_contained,
        **{k: v for k, v in chosen.items() if v is not None},
    )
    export_command(checkpoint, output, options, recipe)


app.command()(build)


@app.command()
def generate(
    artefact: ArtefactArgument,
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="Text to continue")],
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", metavar="N", help="Tokens to write at most")
    ] = 128,
    temperature: Annotated[
        float,
        typer.Option("--temperature", metavar="T", help="0: always the most likely token"),
    ] = 1.0,
    top_p: Annotated[
        float,
        typer.Option(
            "--top-p",
            metavar="P",
            help="Choose among the fewest tokens that have this probability together",
        ),
    ] = 1.0,
    seed: Annotated[
        int | None, typer.Option("--seed", metavar="N", help="Same seed, same text")
    ] = None,
    backend: BackendOption = "onnxruntime",
    engine: EngineOption = None,
    plugins: PluginsOption = None,
    checkpoint: CheckpointOption = None,
    threads: ThreadsOption = 0,
) -> None:
    """Continue a text.

    Pieces are printed as they come; the prompt is not repeated. Stops at the end-of-text token, after
    --max-new-tokens, or when the cache is full.

    Example: ds4export generate out/nano 'In the beginning' --max-new-tokens 40 --seed 0
    """
    from ds4export.runtime import BackEnd, open_artefact
    from ds4export.runtime.sampler import Sampling

    sampling, back_end = Sampling(temperature, top_p, seed), BackEnd(backend, engine, plugins)
    with open_artefact(
        artefact, checkpoint=checkpoint, threads=threads, num_slots=1, back_end=back_end
    ) as model:
        for piece in model.stream(prompt, max_new_tokens=max_new_tokens, sampling=sampling):
            sys.stdout.write(piece)
            sys.stdout.flush()
    sys.stdout.write("\n")


@app.command()
def score(
    artefact: ArtefactArgument,
    ids: Annotated[
        Path, typer.Option("--ids", metavar="FILE", help="Token ids, int64 [B, T] (.npy)")
    ],
    prefill: Annotated[
        int,
        typer.Option(
            "--prefill", metavar="P", help="Tokens processed as prefill; the rest one by one"
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", metavar="FILE", help="Logits, float32 [B, T, V] (.npy)")
    ],
    chunk: Annotated[
        int | None,
        typer.Option("--chunk", metavar="C", help="Prefill in chunks of that many tokens"),
    ] = None,
    lengths: Annotated[
        Path | None,
        typer.Option("--lengths", metavar="FILE", help="Row b ends there, int64 [B] (.npy)"),
    ] = None,
    mtp_out: Annotated[
        Path | None,
        typer.Option("--mtp-out", metavar="FILE", help="Logits of the MTP block too (.npy)"),
    ] = None,
    backend: BackendOption = "onnxruntime",
    engine: EngineOption = None,
    plugins: PluginsOption = None,
    checkpoint: CheckpointOption = None,
    threads: ThreadsOption = 0,
) -> None:
    """Write the logits of given token ids.

    The first P tokens of every row are a prefill, the rest single steps. Logits of padding are NaN; MTP logits of
    position t are fed with the id at t + 1, so the last one is NaN too.

    Example: ds4export score out/nano --ids ids.npy --prefill 100 --chunk 64 --out logits.npy
    """
    from ds4export.report import Reporter
    from ds4export.runtime import BackEnd
    from ds4export.runtime.score_files import score_files

    score_files(
        *(artefact, checkpoint, ids, prefill, out, chunk, lengths, mtp_out, threads, Reporter()),
        back_end=BackEnd(backend, engine, plugins),
    )


@app.command()
def verify(
    artefact: ArtefactArgument,
    backend: Annotated[
        str,
        typer.Option(
            "--backend",
            metavar="NAME",
            help="What runs the artefact: onnxruntime, torch, plugins-on-host; "
            "with a GPU torch-cuda, onnxruntime-cuda, tensorrt-rtx, tensorrt",
        ),
    ] = "onnxruntime",
    vectors: Annotated[
        Path | None,
        typer.Option("--vectors", metavar="DIR", help="Compare with recorded vectors as well"),
    ] = None,
    dump: Annotated[
        Path | None,
        typer.Option(
            "--dump", metavar="DIR", help="Write what the graph computed (with --vectors)"
        ),
    ] = None,
    layers: Annotated[
        str | None,
        typer.Option("--layers", metavar="LIST", help="Only these layers, one at a time: 0,2,3"),
    ] = None,
    cache: CacheOption = "native",
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the report as JSON")
    ] = None,
    junit_file: Annotated[
        Path | None, typer.Option("--junit", metavar="FILE", help="Write the report as JUnit XML")
    ] = None,
    checkpoint: CheckpointOption = None,
) -> None:
    """Prove an artefact against the PyTorch reference.

    End to end, layer by layer, op by op; the first tensor that differs is named. Exit code 0 only if every bound
    holds and everything was covered.

    Example: ds4export verify out/nano
    """
    from ds4export.parity.command import parse_layers, verify_command
    from ds4export.parity.verify import VerifyOptions

    options = VerifyOptions(
        backend=backend,
        vectors=vectors,
        dump=dump,
        layers=parse_layers(layers) if layers is not None else None,
        checkpoint=checkpoint,
        cache=cache,
    )
    report = verify_command(artefact, options, json_file, junit_file)
    if not report.passed:
        raise typer.Exit(1)


@app.command()
def doctor(as_json: JsonFlag = False) -> None:
    """Say what is installed and what each target still needs.

    Exit code 1 if something that is installed cannot work.
    """
    from ds4export.doctor import diagnose
    from ds4export.report import print_json, print_line

    diagnosis = diagnose()
    if as_json:
        print_json(diagnosis.to_json())
    else:
        for line in diagnosis.lines():
            print_line(line)
    if not diagnosis.healthy:
        raise typer.Exit(1)


def main() -> None:
    """Entry point."""
    app()
