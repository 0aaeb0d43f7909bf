"""What a command says: data on stdout, everything about the run on stderr.

Owns stage lines, tables, progress bars, the last line, and the spelling of sizes, counts and times.
Refuses to decide anything: a stage hands over its facts as text. Every line reads without colour.

    [4/8] passes  31 rewrites in 12 of 19 passes  2.1 s
    PASSED  14.2 s  artefact 3f9a1c02d4e5  ds4export verify out/nano
"""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TextIO

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

# Columns of a line that goes to a file or a pipe: wide enough never to be broken.
PIPE_COLUMNS = 10_000
# Characters of a content hash that the last line shows.
HASH_CHARS = 12

Cell = str | int | float | None


@dataclass
class Stage:
    """One stage under way; the code inside its `with` block states the facts."""

    facts: tuple[str, ...] = ()

    def done(self, *facts: str) -> None:
        """Record what the stage line shows between the name and the time."""
        self.facts = facts


class Reporter:
    """Everything one run of a command tells a person, on stderr.

    Example:
        reporter = Reporter(num_stages=8)
        with reporter.stage("passes") as stage:
            stage.done("31 rewrites")
        reporter.finish(passed=True)
    """

    def __init__(
        self,
        *,
        num_stages: int = 1,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.perf_counter,
        command: Sequence[str] | None = None,
    ) -> None:
        self.console = _console(stream or sys.stderr)
        self.num_stages = num_stages
        self._stage_index = 0
        self._clock = clock
        self._command = command
        self._started = clock()

    @contextmanager
    def stage(self, name: str) -> Iterator[Stage]:
        """Time a stage and print its line; a stage that raises prints that it failed."""
        self._stage_index += 1
        started = self._clock()
        stage = Stage()
        try:
            yield stage
        except BaseException:
            self._stage_line(name, ("failed",), self._clock() - started, "red")
            raise
        self._stage_line(name, stage.facts, self._clock() - started, "cyan")

    def note(self, text: str) -> None:
        """Print one line that belongs to no stage."""
        self.console.print(Text(text))

    def warn(self, text: str) -> None:
        """Print a fallback that was taken, or something the user should look at."""
        self.console.print(Text.assemble(("warning: ", "yellow"), text))

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> None:
        """Print a table about the run. A table that is the result goes through `print_table`."""
        _print_table(self.console, title, columns, rows)

    @contextmanager
    def progress(
        self, label: str, total: int, unit: Literal["items", "bytes"] = "items"
    ) -> Iterator[Callable[[int], None]]:
        """Show a bar for long work; yields `advance(step)`. Silent unless stderr is a terminal."""
        amount = DownloadColumn() if unit == "bytes" else MofNCompleteColumn()
        bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            amount,
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        with bar:
            task = bar.add_task(label, total=total)
            yield lambda step: bar.advance(task, step)

    def finish(self, *, passed: bool, artefact_hash: str | None = None) -> None:
        """Print the last line: verdict, time, artefact hash, the exact command."""
        parts = [format_seconds(self._clock() - self._started)]
        if artefact_hash:
            parts.append(f"artefact {artefact_hash[:HASH_CHARS]}")
        parts.append(command_line(self._command))
        verdict = ("PASSED", "bold green") if passed else ("FAILED", "bold red")
        self.console.print(Text.assemble(verdict, "  ", "  ".join(parts)))

    def _stage_line(self, name: str, facts: Sequence[str], seconds: float, style: str) -> None:
        number = f"[{self._stage_index}/{self.num_stages}]"
        rest = "  ".join((*facts, format_seconds(seconds)))
        self.console.print(Text.assemble((number, style), " ", (name, "bold"), "  ", rest))


def print_line(text: str = "") -> None:
    """Print one line of data on stdout."""
    sys.stdout.write(text + "\n")


def print_json(value: object) -> None:
    """Print data for machines on stdout: stable key order, no NaN, one trailing newline."""
    print_line(json.dumps(value, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False))


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> None:
    """Print a table that is the result of a command on stdout."""
    _print_table(_console(sys.stdout), title, columns, rows)


def format_bytes(num_bytes: int) -> str:
    """Decimal units, as disks and checkpoints are described: `159.6 GB`."""
    size = float(num_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if abs(size) < 999.95:
            return f"{num_bytes} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def format_count(number: int, singular: str, plural: str | None = None) -> str:
    """`1 rewrite`, `31 rewrites`, `129,280 rows`."""
    return f"{number:,} {singular if number == 1 else plural or singular + 's'}"


def format_seconds(seconds: float) -> str:
    """`0.3 s` below a minute, `2 min 05 s` from there on."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s"


def command_line(argv: Sequence[str] | None = None) -> str:
    """The command as a person can paste it into a shell; `sys.argv` unless given."""
    program, *arguments = sys.argv if argv is None else argv
    return shlex.join([Path(program).name, *arguments])


def _console(stream: TextIO) -> Console:
    # NO_COLOR: rich alone would still send bold and dim, so no escape codes at all.
    color_system: Literal["auto"] | None = None if os.environ.get("NO_COLOR") else "auto"
    console = Console(file=stream, color_system=color_system, highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = PIPE_COLUMNS
    return console


def _print_table(
    console: Console, title: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]]
) -> None:
    table = Table(title=title or None, title_justify="left", box=None, pad_edge=False)
    for index, column in enumerate(columns):
        numeric = any(isinstance(row[index], int | float) for row in rows)
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(_cell(value)) for value in row))
    with console.capture() as captured:
        console.print(table)
    # rich pads every column, the last one too; a diff or a grep should not see the padding.
    lines = captured.get().splitlines()
    console.file.write("".join(line.rstrip() + "\n" for line in lines))


def _cell(value: Cell) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
