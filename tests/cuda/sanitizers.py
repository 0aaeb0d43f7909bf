"""compute-sanitizer over the small cases, and over a library with a planted fault that it must report.

torch hands every tensor to the driver by itself here, so that an access beyond one is an access beyond an allocation.
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ds4export.cuda.build import FOLDER, Target, build_library
from ds4export.ptxhost.toolchain import PLUGINS
from tests.cuda.parts import TIMED_OUT, Parts, Stage, read_results, run_process

ERRORS = 9
# tool -> (op, name) of the fault in tests/plugins/faults.py that it must report
CONTROLS = {
    "memcheck": ("mtp_merge", "one pack too many"),
    "racecheck": ("rms_norm", "no barrier in the sum"),
}
ENVIRONMENT = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
_REPORT = re.compile(r"=+ *((?:ERROR|RACECHECK) SUMMARY: .*|Invalid .*|.*[Hh]azard.* at .*)")


@dataclass
class Sanitized:
    """One tool over the small cases; `control` says whether it reported the planted fault."""

    tool: str
    num_ops: int = 0
    num_cases: int = 0
    summary: str = ""
    control: str = ""
    seconds: float = 0.0
    wrong: list[str] = field(default_factory=list)
    not_run: list[str] = field(default_factory=list)


def find_sanitizer(nvcc: Path) -> str | None:
    """On PATH, or beside the compiler."""
    beside = nvcc.resolve().parent / "compute-sanitizer"
    return shutil.which("compute-sanitizer") or (str(beside) if beside.is_file() else None)


def sanitize(
    program: str, tool: str, ops: Sequence[str], stage: Stage, target: Target
) -> Sanitized:
    """The control first: a tool that does not see a planted fault proves nothing."""
    found, start = Sanitized(tool), time.monotonic()
    watched = replace(
        stage,
        prefix=(program, "--tool", tool, "--error-exitcode", str(ERRORS), "--print-limit", "5"),
        environment={**stage.environment, **ENVIRONMENT},
        small=True,
    )
    op, fault = CONTROLS[tool]
    faulty = replace(watched, library=faulty_library(op, fault, target))
    code, said, parts = _run([op], faulty)
    found.control = f"{op}, {fault}: {_summary(said)}"
    if code == TIMED_OUT:
        found.not_run.append(f"{tool}: out of time")
        return found
    if code != ERRORS:
        found.wrong.append(f"{tool} did not report the planted fault `{fault}` of {op}")
    code, said, parts = _run(ops, watched)
    found.num_ops, found.summary = len(parts.results), _summary(said)
    found.num_cases = sum(result["num_cases"] for result in parts.results)
    if code == TIMED_OUT:
        found.not_run.append(f"{tool} {', '.join(ops[found.num_ops :])}: out of time")
    elif code:
        found.wrong.append(
            f"{tool} ended with code {code}: {' | '.join(_REPORT.findall(said)[:5])}"
        )
    found.seconds = time.monotonic() - start
    return found


def _run(ops: Sequence[str], stage: Stage) -> tuple[int, str, Parts]:
    seconds = stage.deadline - time.monotonic()
    if seconds < 10:
        return TIMED_OUT, "", Parts()
    out = stage.folder / f"sanitizer-{time.time_ns()}.jsonl"
    code, said = run_process("ops", ops, stage, out, seconds)
    parts = Parts()
    read_results(out, parts)
    return code, said, parts


def _summary(said: str) -> str:
    found = [line for line in _REPORT.findall(said) if "SUMMARY" in line]
    return found[-1] if found else "no summary"


def faulty_library(op: str, fault: str, target: Target) -> Path:
    """The library of one op, built from sources with the fault planted."""
    from tests.plugins.faults import FAULTS

    planted = next(f for f in FAULTS if (f.op, f.name) == (op, fault))
    folder = FOLDER / "faults" / f"{op}-{fault.replace(' ', '-')}"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(PLUGINS, folder)
    path = folder / planted.file
    text = path.read_text(encoding="utf-8")
    assert text.count(planted.old) == 1, f"{planted.file} has no one place for `{fault}`"
    path.write_text(text.replace(planted.old, planted.new), encoding="utf-8")
    return build_library(replace(target, sources=folder), ops=[op]).library
