"""Check every kernel of the plugin library without a GPU: one line per op, exit 0 only if all hold.

    python scripts/check_kernels.py [--ops hc_post ...] [--alone] [--architecture 89] [--every-architecture]
                                    [--no-faults] [--write]

numbers     every case of the op's table, run on the host from the library's own PTX, within the op's tolerance:
            plain in three orders of threads, and in one on every other architecture with code of its own; under
            AddressSanitizer with UndefinedBehaviorSanitizer, and under ThreadSanitizer
resources   registers, stack, local memory on six architectures; instructions that its PTX asks
            for; `--write` renews docs/kernels/resources.md and instructions.md
faults      planted faults of the op, each of which an instrument must catch
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from ds4export.ops import ALL_OPS
from ds4export.ptxhost.build import Variant
from ds4export.ptxhost.library import PtxFile, distinct_architectures, embedded_ptx
from ds4export.ptxhost.toolchain import BUILD, REPOSITORY, Toolchain, find_toolchain
from tests.plugins import check, sass
from tests.plugins.alone import ARCHITECTURE, alone
from tests.plugins.faults import FAULTS, caught_by
from tests.plugins.host import library_path, registered_ops

TABLES = REPOSITORY / "docs/kernels"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ops", nargs="+", choices=list(ALL_OPS), help="default: all")
    parser.add_argument(
        "--every-architecture",
        action="store_true",
        help="sanitizers and all orders on every distinct PTX",
    )
    parser.add_argument("--no-faults", action="store_true", help="leave the planted faults out")
    parser.add_argument("--write", action="store_true", help="write the resource table")
    parser.add_argument(
        "--alone",
        action="store_true",
        help="compile the folders of --ops by themselves, as PTX of one architecture, and check those",
    )
    parser.add_argument(
        "--architecture",
        type=int,
        choices=check.ARCHITECTURES,
        default=ARCHITECTURE,
        help=f"whose PTX --alone compiles, default: {ARCHITECTURE}",
    )
    arguments = parser.parse_args()
    start = time.monotonic()
    found = [*run(arguments)]
    wrong = [line for result in found for line in result.wrong]
    for line in wrong:
        print(f"  {line}")
    ops = [r for r in found if isinstance(r, OpResult)]
    without = [name for name in ALL_OPS if name not in registered_ops()]
    print(f"without a kernel: {', '.join(without) or 'none'}")
    caught = sum(bool(by) for r in ops for by in r.caught.values())
    planted = sum(len(r.caught) for r in ops)
    print(
        f"{'FAILED' if wrong else 'PASSED'}  {len(ops)} ops run on the host, none on a GPU  "
        f"{sum(r.num_cases for r in ops)} cases  {caught}/{planted} faults caught  {time.monotonic() - start:.0f} s"
    )
    sys.exit(bool(wrong))


@dataclass
class Result:
    """What one part of the check found wrong."""

    wrong: list[str]


@dataclass
class OpResult(Result):
    """One op on all its builds."""

    op: str
    runs: list[check.Numbers]
    caught: dict[str, str]

    @property
    def num_cases(self) -> int:
        return self.runs[0].num_cases

    @property
    def launched(self) -> set[str]:
        return set().union(*(r.launched for r in self.runs))


def run(arguments: argparse.Namespace) -> Iterator[Result]:
    """Each op's result as soon as it is there, printed; two ops at a time: most of the work is in other processes."""
    tools = find_toolchain()
    library = library_path()
    if not library:
        sys.exit("error: no plugin library\n\nhint: make plugins")
    files = [] if arguments.alone else embedded_ptx(library, tools.cuobjdump)

    def one(op: str) -> OpResult:
        if not arguments.alone:
            return check_op(op, library, files, tools, arguments)
        architecture = arguments.architecture
        folder = BUILD / "alone" / f"{op}-sm_{architecture}"
        own = alone(op, tools, folder, architecture=architecture)
        return check_op(op, own, embedded_ptx(own, tools.cuobjdump), tools, arguments)

    launched: set[str] = set()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        code = pool.submit(check_code, library, files, tools, write=arguments.write)
        for result in pool.map(one, arguments.ops or registered_ops()):
            launched |= result.launched
            yield result
        yield code.result()
    if not arguments.ops:
        names = {name for kernels in distinct_architectures(files).values() for name in kernels}
        never = [f"{check.readable(name)} was never launched" for name in sorted(names - launched)]
        yield Result(never)


def check_code(library: Path, files: Sequence[PtxFile], tools: Toolchain, *, write: bool) -> Result:
    """What the compiler made of the kernels, on six architectures; nothing to see in a library made for one op."""
    if not files:
        return Result([])
    start = time.monotonic()
    resources, code = check.resources(library, tools), sass.machine_code(library, tools)
    if write:
        names = {r.kernel: check.readable(r.kernel) for r in resources}
        for name, text in (
            ("resources", check.table(resources, names, tools.nvcc_version)),
            ("instructions", sass.table(code, names, tools.nvcc_version)),
        ):
            (TABLES / f"{name}.md").write_text(text, encoding="utf-8")
    wrong = check.check_resources(resources) + sass.check_machine_code(code, files)
    state = "failed" if wrong else "ok"
    print(
        f"{'machine code':<18} {state:<7} {len(code)} kernels  {time.monotonic() - start:.0f} s",
        flush=True,
    )
    return Result(wrong)


def check_op(
    op: str,
    library: Path,
    files: Sequence[PtxFile],
    tools: Toolchain,
    arguments: argparse.Namespace,
) -> OpResult:
    """Numbers on every build, then the planted faults; prints the op's line."""
    start = time.monotonic()
    every = arguments.every_architecture
    runs = [
        check.check_numbers(op, build, library, schedules=schedules)
        for build, schedules in check.builds_of(op, files, tools, every=every)
    ]
    wrong = [
        f"{r.build.variant.value} sm_{r.build.architecture}: {w}" for r in runs for w in r.wrong
    ]
    faults = [] if arguments.no_faults else [f for f in FAULTS if f.op == op]
    caught = {f.name: caught_by(f, tools) for f in faults}
    state = "failed" if wrong or not all(caught.values()) else "ok"
    print(line_of(op, state, runs, caught, time.monotonic() - start), flush=True)
    wrong += [f"{op}: the planted fault `{n}` was not caught" for n, by in caught.items() if not by]
    if not arguments.no_faults and len(faults) < 2:
        wrong.append(f"{op}: {len(faults)} planted faults, expected at least 2")
    return OpResult(wrong, op, runs, caught)


def line_of(
    op: str, state: str, runs: list[check.Numbers], caught: dict[str, str], seconds: float
) -> str:
    counts = {
        v: sorted({r.build.architecture for r in runs if r.build.variant is v}) for v in Variant
    }
    where = "  ".join(f"{v.value} {','.join(map(str, a))}" for v, a in counts.items() if a)
    equal = (
        "bit-equal"
        if all(r.all_equal for r in runs)
        else f"worst row {max(r.worst_row for r in runs):.1e}"
    )
    instruments = Counter(by.split(":")[0] for by in caught.values() if by)
    by = ", ".join(f"{name} {count}" for name, count in instruments.items())
    found = f"{instruments.total()}/{len(caught)} faults caught" + (f" ({by})" if by else "")
    return (
        f"{op:<18} {state:<7} {runs[0].num_cases} cases  {where}  {equal}  {found}  {seconds:.0f} s"
    )


if __name__ == "__main__":
    main()
