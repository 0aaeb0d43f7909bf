"""Write docs/faults.md: every planted fault, what caught it, and the first divergence that was named.

    python scripts/make_faults_table.py            plant and verify all of them: ten minutes and more
    python scripts/make_faults_table.py --only TEXT  print the lines of faults whose name holds TEXT

Exits 1 if a fault is not caught, or is caught and blamed on another op.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

ROOT = Path(__file__).parent.parent
# run as a file: neither the package nor the tests need be installed
sys.path.insert(0, str(ROOT))

from ds4export.parity.describe import PREFIX  # noqa: E402
from ds4export.parity.results import LEVELS, Report  # noqa: E402
from tests.parity.fault import Fault  # noqa: E402
from tests.parity.faults import FAULTS, Bench  # noqa: E402

PAGE = ROOT / "docs" / "faults.md"
INTRODUCTION = (
    "Each fault is planted in a copy of a sound artefact: in the body of an op, in the graph, in the manifest or in",
    "the bytes of weights, never in the reference. `ds4export verify` must fail and name the op. The artefact",
    "is an export of recorded data (tests/data/tiny-a, once tiny-c): float32, or official for the roundings.",
    "The columns say which levels of the comparison failed and what was named first.",
)
COLUMNS = ("fault", "where it is planted", "caught by", "first divergence")


def main() -> int:
    """Run, print, write; 0 if every fault was caught and named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="faults whose name holds this text")
    only = parser.parse_args().only
    torch.set_num_threads(1)
    chosen = [f for f in FAULTS if only in f.name]
    rows, missed = [], []
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder))
        for fault in chosen:
            report = bench.verify(fault)
            rows.append(row(fault, report))
            if not caught(fault, report):
                missed.append(fault.name)
            print(" | ".join(rows[-1][0::2]), report.first_divergence, sep=" | ", flush=True)
    if not only:
        PAGE.write_text("\n".join(page(chosen, rows)) + "\n", encoding="utf-8")
    print(f"{len(chosen) - len(missed)} of {len(chosen)} caught", *missed, sep="\n  not: ")
    return 1 if missed else 0


def caught(fault: Fault, report: Report) -> bool:
    """Whether the run fails for the right reason."""
    return not report.passed and fault.expect in report.first_divergence


def row(fault: Fault, report: Report) -> tuple[str, str, str, str]:
    """One line of the table."""
    failed = {c.level for c in report.failures()}
    levels = ", ".join(level for level in LEVELS if level in failed) or "nothing"
    line = report.first_divergence.removeprefix(PREFIX).removesuffix("; all before agrees")
    return fault.name, fault.where, levels, line.replace("|", "\\|") or "none"


def page(faults: Sequence[Fault], rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    """The whole page."""
    yield "# Planted faults"
    yield ""
    yield "Written by `python scripts/make_faults_table.py`; a test compares it with `tests/parity/faults.py`."
    yield ""
    yield from INTRODUCTION
    yield ""
    yield f"{len(rows)} faults, {sum(r[2] != 'nothing' for r in rows)} caught."
    for group in dict.fromkeys(f.group for f in faults):
        yield from ("", f"## {group[0].upper()}{group[1:]}", "", "| " + " | ".join(COLUMNS) + " |")
        yield "| --- | --- | --- | --- |"
        yield from (
            "| " + " | ".join(r) + " |"
            for f, r in zip(faults, rows, strict=True)
            if f.group == group
        )


if __name__ == "__main__":
    sys.exit(main())
