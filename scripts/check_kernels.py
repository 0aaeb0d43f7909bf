"""Check every kernel of the plugin library without a GPU: one line per op, exit 0 only if all hold.

    python scripts/check_kernels.py [--ops hc_post ...] [--every-architecture] [--no-faults] [--write]

numbers     every case of the op's table, run on the host from the library's own PTX, within the op's tolerance:
            plain in three orders of threads; under AddressSanitizer with UndefinedBehaviorSanitizer and under
            ThreadSanitizer in two
resources   registers, stack, local memory on six architectures; `--write` renews docs/kernels/resources.md
faults      planted faults of the op, each of which an instrument must catch
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from pathlib import Path

from ds4export.ops import ALL_OPS
from ds4export.ptxhost.build import Variant
from ds4export.ptxhost.library import distinct_architectures, embedded_ptx
from ds4export.ptxhost.toolchain import REPOSITORY, find_toolchain
from tests.plugins import check
from tests.plugins.faults import FAULTS, caught_by
from tests.plugins.host import library_path, registered_ops

TABLE = REPOSITORY / "docs/kernels/resources.md"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ops", nargs="+", choices=registered_ops(), default=registered_ops())
    parser.add_argument(
        "--every-architecture", action="store_true", help="sanitizers on every distinct PTX"
    )
    parser.add_argument("--no-faults", action="store_true", help="leave the planted faults out")
    parser.add_argument("--write", action="store_true", help="write the resource table")
    arguments = parser.parse_args()
    library = library_path()
    if not library:
        sys.exit("error: no plugin library\n\nhint: make plugins")
    start = time.monotonic()
    wrong = check_library(library, arguments)
    for line in wrong:
        print(f"  {line}")
    without = [name for name in ALL_OPS if name not in registered_ops()]
    print(f"without a kernel: {', '.join(without) or 'none'}")
    verdict = "FAILED" if wrong else "PASSED"
    print(
        f"{verdict}  {len(arguments.ops)} kernels run on the host, none on a GPU  {time.monotonic() - start:.0f} s"
    )
    sys.exit(bool(wrong))


def check_library(library: Path, arguments: argparse.Namespace) -> list[str]:
    tools = find_toolchain()
    files = embedded_ptx(library, tools.cuobjdump)
    distinct = distinct_architectures(files)
    found = check.resources(library, tools)
    wrong = check.check_resources(found)
    if arguments.write:
        TABLE.write_text(check.table(found, tools.nvcc_version), encoding="utf-8")
    launched: set[str] = set()
    for op in arguments.ops:
        start = time.monotonic()
        builds = check.builds_of(op, files, tools, every=arguments.every_architecture)
        runs = [check.check_numbers(op, b, library) for b in builds]
        wrong += (
            own := [
                f"{r.build.variant.value} sm_{r.build.architecture}: {w}"
                for r in runs
                for w in r.wrong
            ]
        )
        launched |= set().union(*(r.launched for r in runs))
        faults = [] if arguments.no_faults else [f for f in FAULTS if f.op == op]
        caught = {f.name: caught_by(f, tools) for f in faults}
        wrong += [
            f"{op}: the planted fault `{name}` was not caught"
            for name, by in caught.items()
            if not by
        ]
        if not arguments.no_faults and len(faults) < 2:
            wrong.append(f"{op}: {len(faults)} planted faults, expected at least 2")
        print(line_of(op, runs, own, caught, time.monotonic() - start), flush=True)
    if list(arguments.ops) == list(registered_ops()):
        names = {name for kernels in distinct.values() for name in kernels}
        wrong += [f"{check.readable(name)} was never launched" for name in sorted(names - launched)]
    return wrong


def line_of(
    op: str, runs: list[check.Numbers], wrong: list[str], caught: dict[str, str], seconds: float
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
    state = "failed" if wrong or not all(caught.values()) else "ok"
    return (
        f"{op:<18} {state:<7} {runs[0].num_cases} cases  {where}  {equal}  {found}  {seconds:.0f} s"
    )


if __name__ == "__main__":
    main()
