"""ds4export/report.py: every line as a person or a pipe sees it."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable

import pytest

from ds4export import report
from ds4export.report import Reporter

ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def ticking(*times: float) -> Callable[[], float]:
    """A clock that shows these times one after another."""
    return iter(times).__next__


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "80")
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    return Terminal()


def test_a_run_in_a_pipe() -> None:
    out = io.StringIO()
    command = ["/opt/venv/bin/ds4export", "verify", "my artefact"]
    reporter = Reporter(
        num_stages=2, stream=out, clock=ticking(0, 0, 0.3, 1, 3.1, 14.2), command=command
    )
    with reporter.stage("config"):
        pass
    with reporter.stage("passes") as stage:
        stage.done("31 rewrites in 12 of 19 passes", "1.2 MB")
    reporter.finish(passed=True, artefact_hash="3f9a1c02d4e5ffff")
    assert out.getvalue() == (
        "[1/2] config  0.3 s\n"
        "[2/2] passes  31 rewrites in 12 of 19 passes  1.2 MB  2.1 s\n"
        "PASSED  14.2 s  artefact 3f9a1c02d4e5  ds4export verify 'my artefact'\n"
    )


def test_a_stage_that_raises_says_so() -> None:
    out = io.StringIO()
    reporter = Reporter(num_stages=1, stream=out, clock=ticking(0, 0, 1, 1), command=["ds4export"])
    with pytest.raises(KeyboardInterrupt), reporter.stage("write"):
        raise KeyboardInterrupt
    reporter.finish(passed=False)
    assert out.getvalue() == "[1/1] write  failed  1.0 s\nFAILED  1.0 s  ds4export\n"


def test_square_brackets_are_text_and_long_lines_stay_whole() -> None:
    out = io.StringIO()
    reporter = Reporter(stream=out)
    reporter.warn("shape [bold] is " + "very " * 60 + "long")
    reporter.note("[red]plain[/red]")
    first, second = out.getvalue().splitlines()
    assert first.startswith("warning: shape [bold] is very")
    assert first.endswith("long")
    assert second == "[red]plain[/red]"


def test_a_terminal_gets_colour_and_the_same_words(terminal: Terminal) -> None:
    reporter = Reporter(
        num_stages=1, stream=terminal, clock=ticking(0, 0, 1, 2), command=["ds4export"]
    )
    with reporter.stage("capture") as stage:
        stage.done("4 kinds")
    reporter.finish(passed=True)
    assert ESCAPE.search(terminal.getvalue())
    words = ESCAPE.sub("", terminal.getvalue()).splitlines()
    assert words == ["[1/1] capture  4 kinds  1.0 s", "PASSED  2.0 s  ds4export"]


def test_no_color_means_no_escape_codes(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    reporter = Reporter(stream=terminal, command=["ds4export"])
    with reporter.stage("capture"):
        pass
    reporter.table("Layers", ["layer"], [["0"]])
    reporter.finish(passed=False)
    assert not ESCAPE.search(terminal.getvalue())


def test_progress_is_silent_in_a_pipe_and_draws_on_a_terminal(terminal: Terminal) -> None:
    pipe = io.StringIO()
    for stream in (pipe, terminal):
        with Reporter(stream=stream).progress("repack", total=10, unit="bytes") as advance:
            advance(4)
            advance(6)
    assert pipe.getvalue() == ""
    assert "repack" in terminal.getvalue()


def test_tables_have_aligned_columns_and_no_trailing_blanks() -> None:
    out = io.StringIO()
    rows = [(0, "window", 1.23456e-7), (12, "[csa]", None)]
    Reporter(stream=out).table("Layers", ["layer", "kind", "error"], rows)
    assert out.getvalue() == (
        "Layers\nlayer  kind        error\n    0  window  1.235e-07\n   12  [csa]           -\n"
    )


def test_a_table_that_is_data_goes_to_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    report.print_table("", ["name", "bytes"], [("embed.weight", 512)])
    captured = capsys.readouterr()
    assert captured.out == "name          bytes\nembed.weight    512\n"
    assert captured.err == ""


def test_json_goes_to_stdout_and_refuses_nan(capsys: pytest.CaptureFixture[str]) -> None:
    report.print_json({"b": 1, "a": "é"})
    captured = capsys.readouterr()
    assert captured.out == '{\n  "a": "é",\n  "b": 1\n}\n'
    assert json.loads(captured.out) == {"a": "é", "b": 1}
    assert captured.err == ""
    with pytest.raises(ValueError, match="not JSON compliant"):
        report.print_json(float("nan"))


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (999_960, "1.0 MB"),
        (159_609_485_896, "159.6 GB"),
        (1_602_000_000_000, "1.6 TB"),
        (-2000, "-2.0 kB"),
    ],
)
def test_format_bytes(num_bytes: int, text: str) -> None:
    assert report.format_bytes(num_bytes) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"),
        (59.94, "59.9 s"),
        (59.96, "1 min 00 s"),
        (125, "2 min 05 s"),
        (3600, "60 min 00 s"),
    ],
)
def test_format_seconds(seconds: float, text: str) -> None:
    assert report.format_seconds(seconds) == text


def test_format_count() -> None:
    assert report.format_count(1, "rewrite") == "1 rewrite"
    assert report.format_count(129_280, "row") == "129,280 rows"
    assert report.format_count(2, "pass", "passes") == "2 passes"


def test_command_line_can_be_pasted() -> None:
    command = report.command_line(["/x/ds4export", "generate", "out/nano", "It was a dark"])
    assert command == "ds4export generate out/nano 'It was a dark'"
