"""The command line as a person or a script meets it: flags, exit codes, streams, what is imported."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer.main
from typer.testing import CliRunner

from ds4export import errors
from ds4export.cli import app
from ds4export.errors import Ds4Error
from ds4export.export import DEFAULT_MAX_BATCH, DEFAULT_MAX_CONTEXT, ExportOptions
from tests.kit.artefacts import NANO, exported
from tests.kit.checkpoints import recorded

PROGRAM = Path(sys.executable).with_name("ds4export")
# Every flag is a promise: adding one is a decision, removing one breaks somebody's script.
FLAGS = {
    "inspect": "PATH --json",
    "synth": "PATH --preset --seed",
    "export": "CHECKPOINT --output -o --numerics --max-context --max-batch --layers --self-contained --build",
    "build": "ARTEFACT --output -o --target --recipe --cache --plugins --checkpoint",
    "generate": "ARTEFACT PROMPT --max-new-tokens --temperature --top-p --seed --backend --engine --plugins "
    "--checkpoint --threads",
    "score": "ARTEFACT --ids --prefill --out --chunk --lengths --mtp-out --backend --engine --plugins "
    "--checkpoint --threads",
    "verify": "ARTEFACT --backend --vectors --dump --layers --cache --json --junit --checkpoint",
    "doctor": "--json",
}
ERRORS = [e for e in vars(errors).values() if isinstance(e, type) and issubclass(e, Ds4Error)]


def ds4export(*arguments: Any, **options: Any) -> subprocess.CompletedProcess[str]:
    """The installed command in a process of its own, as a pipe sees it."""
    environment = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "COLUMNS")}
    environment |= {"OMP_NUM_THREADS": "1", **options.pop("env", {})}
    return subprocess.run(
        [PROGRAM, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
        timeout=120,
        **options,
    )


def invoke(*arguments: str) -> Any:
    """The command in this process: fast, but without its real streams."""
    return CliRunner().invoke(app, list(arguments))


def commands() -> dict[str, Any]:
    group: Any = typer.main.get_command(app)
    return dict(group.commands)


def test_commands_and_flags_are_frozen() -> None:
    found = {
        name: " ".join(
            p.name.upper() if p.param_type_name == "argument" else " ".join(p.opts)
            for p in command.params
            if p.name != "help"
        )
        for name, command in commands().items()
    }
    assert found == FLAGS


@pytest.mark.parametrize("name", FLAGS)
def test_every_command_explains_itself(name: str) -> None:
    command = commands()[name]
    first = command.help.splitlines()[0]
    assert first.endswith(".")
    assert len(first) < 62, "the list of commands would cut it off"
    shown = invoke(name, "--help")
    assert shown.exit_code == 0
    for parameter in command.params:
        assert parameter.help, f"{name} {parameter.name} has no help"
        if parameter.param_type_name == "option":
            assert parameter.opts[0] in shown.output
            assert not parameter.help.endswith("."), "single sentences have no full stop"


def test_the_help_of_export_states_the_defaults() -> None:
    text = " ".join(invoke("export", "--help").output.split())
    options = ExportOptions()
    assert options.official
    assert "[default: official]" in text
    assert f"[default: {DEFAULT_MAX_CONTEXT}]" in text
    assert f"[default: {DEFAULT_MAX_BATCH}]" in text
    assert "Weights are not copied" in text
    assert "Example: ds4export export" in text


def test_the_list_of_commands() -> None:
    """Golden, at 80 columns. Without any argument it is shown too, as wrong usage."""
    done, bare = ds4export("--help"), ds4export()
    assert (done.returncode, bare.returncode) == (0, 2)
    assert done.stdout == bare.stderr
    assert done.stderr == bare.stdout == ""
    assert done.stdout.splitlines() == [
        "Usage: ds4export [OPTIONS] COMMAND [ARGS]...",
        "",
        "  Compile DeepSeek-V4 checkpoints to ONNX and engines, run them, and prove",
        "  every stage.",
        "",
        "  Start: ds4export inspect CHECKPOINT, then ds4export export CHECKPOINT -o",
        "  ARTEFACT, then ds4export verify ARTEFACT and ds4export generate ARTEFACT",
        "  'your prompt'.",
        "",
        "Options:",
        "  --version  Print the version and exit",
        "  --help     Show this message and exit.",
        "",
        "Commands:",
        "  inspect   Say what a checkpoint is, and whether it is complete.",
        "  synth     Write a random checkpoint in the official format.",
        "  export    Export a checkpoint to ONNX.",
        "  build     Build a TensorRT engine from an artefact, ahead of time.",
        "  generate  Continue a text.",
        "  score     Write the logits of given token ids.",
        "  verify    Prove an artefact against the PyTorch reference.",
        "  doctor    Say what is installed and what each target still needs.",
    ]


def test_version() -> None:
    assert re.fullmatch(r"ds4export \d+\.\d+\.\d+\n", invoke("--version").stdout)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["exprt"], "No such command 'exprt'. Did you mean 'export'?"),
        (["export"], "Missing argument 'CHECKPOINT'"),
        (["export", "x"], "Missing option '--output'"),
        (["export", "x", "-o", "y", "--max-batch", "many"], "'--max-batch'"),
        (["score", "x", "--prefil", "3"], "No such option: --prefil"),
        (["generate", "x"], "Missing argument 'PROMPT'"),
    ],
)
def test_wrong_usage_is_exit_code_2(arguments: list[str], text: str) -> None:
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert text in result.stderr
    assert result.stdout == ""


REFUSALS: dict[str, tuple[list[str], str]] = {
    "inspect": (["inspect", "nowhere"], "the checkpoint is not a folder"),
    "synth": (["synth", "out", "--preset", "huge"], "unknown preset"),
    "export": (["export", "nowhere", "-o", "out"], "the checkpoint is not a folder"),
    "numerics": (["export", "x", "-o", "out", "--numerics", "fp4"], "unknown --numerics"),
    "layers": (["export", "x", "-o", "out", "--layers", "3"], "--layers is not a range"),
    "build": (["build", "nowhere", "-o", "out", "--target", "cuda"], "unknown --target"),
    "generate": (["generate", "nowhere", "hi"], "the artefact is not a folder"),
    "temperature": (["generate", "x", "hi", "--temperature", "-1"], "--temperature is out of range"),
    "score": (["score", "x", "--ids", "a", "--prefill", "1", "--out", "b"], "the file cannot be read"),
    "verify": (["verify", "nowhere"], "the artefact is not a folder"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals_are_exit_code_1_without_a_traceback(case: str, tmp_path: Path) -> None:
    arguments, text = REFUSALS[case]
    done = ds4export(*arguments, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stdout == ""
    assert f"error: {text}" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ERRORS, ids=lambda e: e.__name__)
def test_every_error_of_ours_is_printed_in_full(
    kind: type[Ds4Error], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise kind("it broke", where="here", found=1, expected=2, hint="mend it")

    monkeypatch.setattr("ds4export.checkpoint.open_checkpoint", fail)
    result = invoke("inspect", "x")
    assert result.exit_code == 1
    assert result.stderr.splitlines() == [
        "error: it broke",
        "  where:    here",
        "  found:    1",
        "  expected: 2",
        "",
        "hint: mend it",
    ]


def test_a_bug_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("a bug")

    monkeypatch.setattr("ds4export.checkpoint.open_checkpoint", fail)
    assert isinstance(invoke("inspect", "x").exception, AssertionError)


def test_export_says_one_line_per_stage_and_a_last_line(tmp_path: Path) -> None:
    done = ds4export(
        "export", recorded("tiny-a"), "-o", "out", "--numerics", "float32", "--layers", "0:1",
        cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    patterns = [
        r"\[1/5\] checkpoint  custom  504 tensors  layers 0:1  numerics float32  [\d.]+ s",
        r"\[2/5\] trace  2 layer functions  1 layer  [\d.]+ s",
        r"\[3/5\] passes  main: \d+ rewrites in \d+ of \d+ passes  [\d.]+ s",
        r"\[4/5\] weights  \d+ bound  0 B copied  [\d.]+ s",
        r"\[5/5\] write  2 files  [\d.]+ kB  [\d.]+ s",
        r"PASSED  [\d.]+ s  artefact [0-9a-f]{12}  .*export .* --layers 0:1",
    ]
    assert len(lines) == len(patterns), done.stderr
    for line, pattern in zip(lines, patterns, strict=True):
        assert re.fullmatch(pattern, line), line


def test_a_stage_that_fails_says_so_before_the_error(tmp_path: Path) -> None:
    done = ds4export("export", "nowhere", "-o", "out", cwd=tmp_path)
    assert re.match(r"\[1/5\] checkpoint  failed  [\d.]+ s\nerror: ", done.stderr)


def test_json_is_alone_on_stdout() -> None:
    for arguments in (["inspect", str(NANO)], ["doctor"]):
        done = ds4export(*arguments, "--json")
        assert done.returncode == 0
        assert isinstance(json.loads(done.stdout), dict)
        assert done.stderr == ""


@pytest.mark.parametrize(
    "arguments", [["inspect", NANO], ["export", "--help"], ["export", "none", "-o", "x"]]
)
def test_without_colour_every_line_reads_the_same(arguments: list[Any]) -> None:
    plain = ds4export(*arguments, env={"NO_COLOR": "1"})
    forced = ds4export(
        *arguments, env={"NO_COLOR": "1", "FORCE_COLOR": "1", "TERM": "xterm-256color"}
    )
    for stream in (plain.stdout, plain.stderr, forced.stdout, forced.stderr):
        assert "\x1b" not in stream


# What a command imports is what a person waits for.
PROBE = """
import sys
from ds4export.cli import app
try:
    app(sys.argv[1:])
except SystemExit as stop:
    code = stop.code
sys.stderr.write(f"exit {code or 0}; " + " ".join(sorted({m.split(".")[0] for m in sys.modules})))
"""


def imported(*arguments: Any, cwd: Path) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", PROBE, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
    )
    code, _, modules = done.stderr.rpartition("exit ")[2].partition("; ")
    assert code == "0", done.stderr
    return set(modules.split())


def test_running_an_artefact_does_not_import_torch(tmp_path: Path) -> None:
    artefact, ids = exported("nano"), tmp_path / "ids.npy"
    np.save(ids, np.ones((1, 5), np.int64))
    heavy = {"torch", "onnxscript", "onnx_ir", "onnx", "transformers", "pytest"}
    generate = ["generate", artefact, "And", "--max-new-tokens", "2", "--threads", "1"]
    score = ["score", artefact, "--ids", ids, "--prefill", "4", "--out", "x.npy", "--threads", "1"]
    for arguments in (["inspect", NANO], generate, score):
        modules = imported(*arguments, cwd=tmp_path)
        assert "ds4export" in modules
        assert not modules & heavy, arguments[0]
    assert "onnxruntime" in imported(*generate, cwd=tmp_path)


@pytest.mark.parametrize("arguments", [["--help"], ["export", "--help"], ["--version"]])
def test_help_imports_nothing_heavy(arguments: list[str], tmp_path: Path) -> None:
    modules = imported(*arguments, cwd=tmp_path)
    assert not modules & {"torch", "numpy", "onnxruntime", "onnx", "tokenizers", "safetensors"}


def test_generate_streams_to_stdout_alone() -> None:
    arguments = ["generate", exported("nano"), "In the beginning", "--threads", "1"]
    options = ["--max-new-tokens", "12", "--temperature", "0"]
    first, second = (ds4export(*arguments, *options) for _ in range(2))
    assert first.returncode == 0, first.stderr
    assert first.stderr == ""
    assert first.stdout.endswith("\n")
    assert len(first.stdout.split()) >= 3
    assert second.stdout == first.stdout


def test_score_writes_a_file(tmp_path: Path) -> None:
    np.save(tmp_path / "ids.npy", np.ones((2, 7), np.int64))
    done = ds4export(
        "score", exported("nano"), "--ids", "ids.npy", "--prefill", "5", "--chunk", "2",
        "--out", "logits.npy", "--mtp-out", "mtp.npy", "--threads", "1", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert re.search(r"^PASSED .* artefact [0-9a-f]{12} ", done.stderr, re.M)
    assert np.load(tmp_path / "logits.npy").shape == (2, 7, 1024)
    assert np.load(tmp_path / "mtp.npy").shape == (2, 7, 1024)


INTERRUPTED = """
import os, signal, sys
# a parent without a terminal may have left the signal ignored
signal.signal(signal.SIGINT, signal.default_int_handler)
import ds4export.runtime.model as model

def stream(*args, **kwargs):
    yield "half a word"
    os.kill(os.getpid(), signal.SIGINT)
    yield "never"

model.Model.stream = stream
from ds4export.cli import main
sys.argv[1:] = ["generate", sys.argv[1], "x", "--threads", "1"]
main()
"""


def test_ctrl_c_is_exit_code_130() -> None:
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, exported("nano", layers=(0, 1))],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 128 + signal.SIGINT
    assert done.stdout == "half a word"
    assert done.stderr == "interrupted\n"


def test_a_reader_that_goes_away_is_no_error() -> None:
    """As with `| head -1`: silence and the exit code of SIGPIPE."""
    with subprocess.Popen(
        [PROGRAM, "inspect", NANO],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        said = process.stderr.read()
        assert process.wait() == 141
    assert said == b""
