"""Prove small launches of every kernel that has a barrier free of races, from the shipped library's PTX.

That of sm_80, and of sm_89 for the kernels that multiply e4m3 there.

    python scripts/check_races.py [--only PART] [--ptx FILE ...] [--no-faults] [--timeout SECONDS] [--write]

Needs `make plugins` and sentryward (plugins/oracles.txt) on PATH. Verdicts are kept under build/races. With every
kernel goes its planted fault: the same launch with the barriers left out must not be race_free. Exits 0 only if all
launches hold, except those that race_launches.py excepts with a reason. `--write` renews docs/kernels/races.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ds4export.errors import ToolchainError
from ds4export.ptxhost.library import embedded_ptx
from ds4export.ptxhost.parse import Instruction, Kernel, Module, parse
from ds4export.ptxhost.toolchain import REPOSITORY, find_toolchain
from tests.plugins.check import multiplies_e4m3, readable
from tests.plugins.host import library_path
from tests.plugins.race_free import (
    RACE_FREE,
    TIMEOUT_S,
    Launch,
    Verdict,
    find_sentryward,
    prove,
    without_barriers,
)
from tests.plugins.race_launches import launches_of

PAGE = REPOSITORY / "docs/kernels/races.md"
ARCHITECTURE, E4M3_ARCHITECTURE = 80, 89
MOST_EXCEPTIONS = 3  # reasons


@dataclass(frozen=True)
class Row:
    """One launch of one kernel; `fault` is its verdict without barriers."""

    kernel: str
    what: str
    verdict: Verdict
    fault: Verdict | None
    excepted: str

    @property
    def holds(self) -> bool:
        awake = self.fault is None or self.fault.result not in (RACE_FREE, "unsupported")
        return self.verdict.result == RACE_FREE and awake

    def __str__(self) -> str:
        told = (
            f"{self.verdict.result:<12} {self.verdict.seconds:5.1f} s  {self.kernel}: {self.what}"
        )
        told += f", barriers left out: {self.fault.result}" if self.fault else ""
        return told + (f"\n             {self.verdict.why}" if self.verdict.why else "")


def main() -> int:
    """Prove, print, and with --write renew the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="kernels whose readable name has this in it")
    parser.add_argument("--no-faults", action="store_true", help="leave the planted faults out")
    parser.add_argument("--timeout", type=int, default=TIMEOUT_S, help="seconds for a launch")
    parser.add_argument(
        "--ptx", nargs="+", type=Path, default=[], help="PTX that the library lacks"
    )
    parser.add_argument("--write", action="store_true", help="renew docs/kernels/races.md")
    arguments = parser.parse_args()
    rows: list[Row] = []
    unknown: list[str] = []
    try:
        for found in prove_all(arguments):
            print(found if isinstance(found, Row) else f"no launch for {found}", flush=True)
            if isinstance(found, Row):
                rows.append(found)
            else:
                unknown.append(found)
    except ToolchainError as error:
        raise SystemExit(f"error: {error}") from error
    if arguments.write and not arguments.only:
        PAGE.write_text(page(rows), encoding="utf-8")
    wrong = [row for row in rows if not row.holds and not row.excepted]
    print(f"{len(rows)} launches, {len(wrong)} not proved, {len(unknown)} kernels without a launch")
    return int(bool(wrong or unknown))


def texts(ptx: Sequence[Path]) -> Iterator[tuple[str, Module, str]]:
    """PTX of the shipped library, then of the files; a note says which is of another architecture or not shipped."""
    library = library_path()
    if not library:
        raise SystemExit("no plugin library: run `make plugins` first")
    cuobjdump = find_toolchain().cuobjdump
    for file in embedded_ptx(library, cuobjdump, ARCHITECTURE):
        yield file.text, file.module, ""
    for file in embedded_ptx(library, cuobjdump, E4M3_ARCHITECTURE):
        kernels = tuple(k for k in file.module.kernels if multiplies_e4m3(k))
        yield file.text, replace(file.module, kernels=kernels), f", sm_{E4M3_ARCHITECTURE}"
    for path in ptx:
        text = path.read_text(encoding="utf-8")
        yield text, parse(text), ", compiled alone"


def prove_all(arguments: argparse.Namespace) -> Iterator[Row | str]:
    """One row per launch; the name alone of a kernel that has none."""
    program = find_sentryward()
    seen: set[tuple[str, str]] = set()
    for text, module, note in texts(arguments.ptx):
        for kernel in module.kernels:
            name = readable(kernel.name)
            if (
                (kernel.name, note) in seen
                or not _has_barrier(kernel)
                or arguments.only not in name
            ):
                continue
            seen.add((kernel.name, note))
            launches = launches_of(name)
            if not launches:
                yield name
            for i, launch in enumerate(launches):
                verdict = prove(text, kernel.name, launch, program, arguments.timeout)
                fault = None
                if not arguments.no_faults and i == 0 and verdict.result == RACE_FREE:
                    fault = _planted(text, kernel.name, launch, program, arguments.timeout)
                yield Row(_short(name), launch.what + note, verdict, fault, launch.excepted)


def _planted(text: str, entry: str, launch: Launch, program: Path, timeout_s: int) -> Verdict:
    """Without any barrier; without the last where that says nothing: addresses may be handed on in shared memory."""
    fault = prove(without_barriers(text, entry), entry, launch, program, timeout_s)
    if fault.result != "unsupported":
        return fault
    return prove(without_barriers(text, entry, last_only=True), entry, launch, program, timeout_s)


def _has_barrier(kernel: Kernel) -> bool:
    return any(isinstance(s, Instruction) and s.opcode.startswith("bar") for s in kernel.statements)


def _short(name: str) -> str:
    """Without the field types that a kernel of moe carries in its name."""
    return name.partition(", long const*")[0] + (">" if ", long const*" in name else "")


def page(rows: list[Row]) -> str:
    """docs/kernels/races.md."""
    lines = [
        f"| `{row.kernel}` | {row.what} | {_result(row.verdict)} | {row.verdict.seconds:.0f}"
        f" | {row.fault.result if row.fault else '-'} |"
        for row in sorted(rows, key=lambda row: (row.kernel, row.what))
    ]
    return HEAD.format(exceptions=_exceptions(rows)) + "\n".join(lines) + "\n"


def _exceptions(rows: list[Row]) -> str:
    reasons = sorted({row.excepted for row in rows if row.excepted and not row.holds})
    assert len(reasons) <= MOST_EXCEPTIONS, f"{len(reasons)} reasons for exceptions"
    kernels = {
        why: sorted({f"`{r.kernel}`" for r in rows if r.excepted == why and not r.holds})
        for why in reasons
    }
    return "\n".join(f"- {', '.join(kernels[why])}: {why}." for why in reasons) or "- nothing."


def _result(verdict: Verdict) -> str:
    return verdict.result if verdict.result == RACE_FREE else f"**{verdict.result}**: {verdict.why}"


HEAD = """# Races, in every schedule

Written by `python scripts/check_races.py --write`. sentryward 0.1.1 proves that one small launch has no race, deadlock
or mismatched barrier in *any* order of its threads, where ThreadSanitizer on the host sees the orders that ran. It does
so for the PTX of sm_80 inside the plugin library, for every kernel with a barrier, and for that of sm_89 where a kernel
multiplies e4m3 on it. The last column is the planted fault: the same launch with the kernel's barriers left out, once
per kernel; it must not be race_free.

What it cannot show: other sizes and other contents of the arrays that steer control flow; bounds; values; fences and
the memory model. Where sentryward cannot follow the PTX, it is rewritten first; `tests/plugins/race_free.py` says how,
and why no race of the original is lost by it. Buffers of different arguments are taken not to overlap, as launchers
require. An in-place state tensor is one argument twice: there only the order of launches keeps readers and writers
apart, which is not part of a proof about one launch.

Not proved, and what covers it instead:

{exceptions}

| kernel | launch | verdict | s | barriers left out |
| --- | --- | --- | --- | --- |
"""

if __name__ == "__main__":
    sys.exit(main())
