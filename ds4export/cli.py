"""The command line: parse, call one stage, print. No logic.

Data goes to stdout, everything about the run to stderr. Heavy packages are imported inside the commands, so that
`--help` answers at once.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from ds4export.errors import Ds4Error, RuntimeInputError

app = typer.Typer(
    name="ds4export",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Compile DeepSeek-V4 checkpoints to ONNX and engines, run them, and prove every stage.\n\n"
    "Start: ds4export inspect CHECKPOINT, then ds4export export CHECKPOINT -o ARTEFACT, "
    "then ds4export verify ARTEFACT and ds4export generate ARTEFACT 'your prompt'.",
)

ArtefactArgument = Annotated[
    Path, typer.Argument(metavar="ARTEFACT", help="Folder written by `export`")
]
CheckpointOption = Annotated[
    Path | None,
    typer.Option(
        "--checkpoint", metavar="DIR", help="Where the checkpoint is now, if it has moved"
    ),
]
JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON for machines on stdout")]
ThreadsOption = Annotated[
    int, typer.Option("--threads", help="Threads of ONNX Runtime; 0 lets it choose")
]


@app.command()
def inspect(
    path: Annotated[
        Path, typer.Argument(metavar="CHECKPOINT", help="Folder with config.json and the shards")
    ],
    as_json: JsonFlag = False,
) -> None:
    """Say what a checkpoint is: variant, layers by kind, parameters, bytes by dtype, whether it is complete."""
    from ds4export.checkpoint import open_checkpoint
    from ds4export.checkpoint.summary import summarise
    from ds4export.report import print_json, print_line

    with open_checkpoint(path) as checkpoint:
        summary = summarise(checkpoint)
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
        str, typer.Option("--preset", help="tiny, flash-slice or pro-slice")
    ] = "tiny",
    seed: Annotated[int, typer.Option("--seed", help="Same seed, same bytes")] = 0,
) -> None:
    """Write a seeded random checkpoint in the official format, to try real widths on any machine."""
    from ds4export.checkpoint import PRESETS
    from ds4export.checkpoint.names import expected_tensors
    from ds4export.checkpoint.synth import write_synthetic
    from ds4export.report import Reporter

    if preset not in PRESETS:
        raise RuntimeInputError("unknown preset", found=preset, expected=", ".join(PRESETS))
    reporter = Reporter()
    total = sum(t.nbytes for t in expected_tensors(PRESETS[preset]).values())
    with reporter.stage("synth") as stage:
        with reporter.progress("writing", total, "bytes") as advance:
            done = 0

            def show(written: int, _total: int) -> None:
                nonlocal done
                advance(written - done)
                done = written

            write_synthetic(path, PRESETS[preset], seed=seed, progress=show)
        stage.done(preset, f"{total:,} bytes", str(path))
    reporter.finish(passed=True)


@app.command()
def export(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="CHECKPOINT", help="Folder with config.json and the shards")
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="ARTEFACT", help="Folder to create")
    ],
    numerics: Annotated[
        str,
        typer.Option(
            "--numerics", help="official: every rounding of the released code; or float32"
        ),
    ] = "official",
    max_context: Annotated[
        int | None,
        typer.Option(
            "--max-context", help="Tokens per sequence that a runtime allocates by default"
        ),
    ] = None,
    max_batch: Annotated[
        int | None, typer.Option("--max-batch", help="Sequences that a runtime holds by default")
    ] = None,
    layers: Annotated[
        str | None,
        typer.Option(
            "--layers", metavar="A:B", help="Export layers A to B-1 only; streams in and out"
        ),
    ] = None,
    self_contained: Annotated[
        bool,
        typer.Option(
            "--self-contained",
            help="Copy the weights: a folder that any ONNX Runtime program opens",
        ),
    ] = False,
) -> None:
    """Export a checkpoint to ONNX. Weights are not copied: the artefact points into the checkpoint."""
    from ds4export.export import ExportOptions, export_checkpoint, parse_layers
    from ds4export.report import Reporter

    if numerics not in ("official", "float32"):
        raise RuntimeInputError(
            "unknown --numerics", found=numerics, expected="official or float32"
        )
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
    reporter = Reporter(num_stages=5)
    manifest = export_checkpoint(checkpoint, output, options, reporter)
    reporter.finish(passed=True, artefact_hash=manifest.hash)


@app.command()
def generate(
    artefact: ArtefactArgument,
    prompt: Annotated[str, typer.Argument(help="Text to continue")],
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", help="Tokens to write at most")
    ] = 128,
    temperature: Annotated[
        float, typer.Option("--temperature", help="0: always the most likely token")
    ] = 1.0,
    top_p: Annotated[
        float, typer.Option("--top-p", help="Keep the smallest set of tokens of that probability")
    ] = 1.0,
    seed: Annotated[int | None, typer.Option("--seed", help="Same seed, same text")] = None,
    checkpoint: CheckpointOption = None,
    threads: ThreadsOption = 0,
) -> None:
    """Continue a text; the pieces are printed as they come."""
    from ds4export.runtime import open_artefact
    from ds4export.runtime.sampler import Sampling

    sampling = Sampling(temperature, top_p, seed)
    with open_artefact(artefact, checkpoint=checkpoint, threads=threads, num_slots=1) as model:
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
        int, typer.Option("--prefill", help="Tokens processed as prefill; the rest one by one")
    ],
    out: Annotated[
        Path, typer.Option("--out", metavar="FILE", help="Logits, float32 [B, T, V] (.npy)")
    ],
    chunk: Annotated[
        int | None, typer.Option("--chunk", help="Prefill in chunks of that many tokens")
    ] = None,
    lengths: Annotated[
        Path | None,
        typer.Option("--lengths", metavar="FILE", help="int64 [B]: row b ends there (.npy)"),
    ] = None,
    mtp_out: Annotated[
        Path | None,
        typer.Option("--mtp-out", metavar="FILE", help="Logits of the MTP block (.npy)"),
    ] = None,
    checkpoint: CheckpointOption = None,
    threads: ThreadsOption = 0,
) -> None:
    """Write the logits of given token ids; those of padding are NaN."""
    from ds4export.report import Reporter
    from ds4export.runtime.score_files import score_files

    reporter = Reporter()
    with reporter.stage("score") as stage:
        stage.done(
            *score_files(
                artefact, checkpoint, ids, prefill, out, chunk, lengths, mtp_out, threads, reporter
            )
        )


@app.command()
def verify(
    artefact: ArtefactArgument,
    backend: Annotated[
        str, typer.Option("--backend", metavar="NAME", help="What runs the artefact: onnxruntime or torch")
    ] = "onnxruntime",
    vectors: Annotated[
        Path | None,
        typer.Option("--vectors", metavar="DIR", help="Compare with recorded vectors as well"),
    ] = None,
    dump: Annotated[
        Path | None,
        typer.Option("--dump", metavar="DIR", help="Write what the graph computed (with --vectors)"),
    ] = None,
    layers: Annotated[
        str | None,
        typer.Option(
            "--layers", metavar="LIST", help="Only these layers, one at a time: 0,2,3"
        ),
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the report as JSON")
    ] = None,
    junit_file: Annotated[
        Path | None, typer.Option("--junit", metavar="FILE", help="Write the report as JUnit XML")
    ] = None,
    checkpoint: CheckpointOption = None,
) -> None:
    """Prove an artefact against the PyTorch reference: end to end, layer by layer, op by op."""
    from ds4export.parity.command import parse_layers, verify_command
    from ds4export.parity.verify import VerifyOptions

    options = VerifyOptions(
        backend=backend,
        vectors=vectors,
        dump=dump,
        layers=parse_layers(layers) if layers is not None else None,
        checkpoint=checkpoint,
    )
    report = verify_command(artefact, options, json_file, junit_file)
    if not report.passed:
        raise typer.Exit(1)


@app.command()
def doctor(as_json: JsonFlag = False) -> None:
    """Say what is installed and what each target still needs."""
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
    """Entry point: refusals are printed in full and without a traceback, exit code 1; Ctrl-C gives 130."""
    try:
        app()
    except Ds4Error as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(1)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(141)
