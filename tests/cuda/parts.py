"""Child processes of gpu-check: started with a deadline, read line by line, started again after a part that crashed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ds4export.ptxhost.toolchain import REPOSITORY
from tests.cuda.child import BEGIN, FACTS, NOT_RUN, RESULT

MOST_STARTS = 4
TIMED_OUT = 124  # as `timeout` has it
SAID = 3000
LEAST_SECONDS = 5  # below which no process is started


@dataclass
class Parts:
    """What the processes of one stage found."""

    results: list[dict[str, Any]] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    not_run: list[str] = field(default_factory=list)
    code: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Stage:
    """How the children of a stage are started; `prefix` is a tool that watches them."""

    library: Path
    device: str
    folder: Path
    deadline: float
    environment: Mapping[str, str]
    prefix: tuple[str, ...] = ()
    small: bool = False


def run_parts(what: str, names: Sequence[str], stage: Stage) -> Parts:
    """Run all parts; a process that dies in one is replaced for the parts after it."""
    found, start, left = Parts(), time.monotonic(), list(names)
    reason = f"{MOST_STARTS} processes died before it"
    for _ in range(MOST_STARTS):
        seconds = stage.deadline - time.monotonic()
        if seconds < LEAST_SECONDS:
            reason = "out of time"
            break
        out = stage.folder / f"{what}-{time.time_ns()}.jsonl"
        found.code, said = run_process(what, left, stage, out, seconds)
        begun, num_results = read_results(out, found)
        if found.code == TIMED_OUT:
            left, reason = left[num_results:], "out of time"
            break
        if found.code == 0:
            left = []
            break
        found.wrong.append(
            f"{begun or what}: the process ended with code {found.code}: {_end(said)}"
        )
        if begun is None:
            reason = "the process did not come to it"
            break
        left = left[num_results + 1 :]
        if not left:
            break
    found.not_run += [f"{what} {name}: {reason}" for name in left]
    found.seconds = time.monotonic() - start
    return found


def run_process(
    what: str, names: Sequence[str], stage: Stage, out: Path, seconds: float
) -> tuple[int, str]:
    """One process of the stage, for so many seconds: its exit code (124 if it ran out of them) and what it said."""
    command = [
        *stage.prefix,
        *(sys.executable, "-m", "tests.cuda.child", what, "--library", str(stage.library)),
        *("--device", stage.device, "--out", str(out)),
        *(["--small"] if stage.small else []),
        *("--names", *names),
    ]
    path = os.pathsep.join(filter(None, (str(REPOSITORY), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONPATH": path, **stage.environment}
    out.parent.mkdir(parents=True, exist_ok=True)
    process = subprocess.Popen(
        command,
        cwd=REPOSITORY,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        said, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        # A tool's own child would live on and hold the pipe open.
        os.killpg(process.pid, signal.SIGKILL)
        return TIMED_OUT, process.communicate()[0]
    return process.returncode, said


def read_results(path: Path, found: Parts) -> tuple[str | None, int]:
    """Merge a file of lines; returns the part that began and never ended, and how many ended."""
    begun, count = None, 0
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    for line in lines:
        entry = json.loads(line)
        match entry["kind"]:
            case kind if kind == FACTS:
                found.facts = entry["what"]
            case kind if kind == BEGIN:
                begun = entry["what"]
            case kind if kind == NOT_RUN:
                found.not_run.append(entry["what"])
            case kind if kind == RESULT:
                found.results.append(entry["what"])
                found.wrong += entry["what"].get("wrong", [])
                begun, count = None, count + 1
    return begun, count


def _end(said: str) -> str:
    lines = [line for line in said.splitlines() if line.strip()]
    return " | ".join(lines[-3:])[-SAID:]
