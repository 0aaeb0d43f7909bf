"""Which machine instructions the compiler really used, per kernel and architecture, against what its PTX asks for.

A kernel that asks for tensor cores, ldmatrix or asynchronous copies must have got them; none may touch local memory.
"""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ds4export.ptxhost.library import PtxFile
from ds4export.ptxhost.parse import Instruction, Kernel
from ds4export.ptxhost.toolchain import Toolchain

# what a table shows -> SASS roots that count as it
FAMILIES: Mapping[str, tuple[str, ...]] = {
    "mma": ("HMMA", "QMMA", "OMMA"),
    "ldmatrix": ("LDSM",),
    "cp.async": ("LDGSTS",),
    "local": ("LDL", "STL"),
}
_FAMILY_OF = {root: family for family, roots in FAMILIES.items() for root in roots}
_ASKED = {"mma.": "mma", "ldmatrix.": "ldmatrix", "cp.async.c": "cp.async"}
_INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?([A-Z][A-Z0-9]*)")


@dataclass(frozen=True)
class Sass:
    """Instructions of one kernel on one architecture: `size` in all, `families` of those that FAMILIES names."""

    kernel: str
    architecture: int
    size: int
    families: Mapping[str, int]


def machine_code(library: Path, tools: Toolchain) -> list[Sass]:
    """One entry per kernel and architecture of the library."""
    command: list[str | Path] = [tools.cuobjdump, "-sass", library]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None, "a pipe was asked for"
        found = list(_counted(process.stdout))
    assert process.returncode == 0, f"cuobjdump ended with code {process.returncode}"
    assert found, f"{library}: no machine code found"
    return found


def _counted(lines: Iterable[str]) -> Iterable[Sass]:
    architecture, kernel, counts = 0, "", Counter[str]()
    for line in lines:
        if match := _INSTRUCTION.search(line):
            counts[match[1]] += 1
        elif line.startswith("arch = sm_"):
            architecture = int(re.sub(r"\D", "", line))
        elif "Function : " in line or line.startswith("Fatbin"):
            if kernel and counts:
                yield _sass(kernel, architecture, counts)
            kernel, counts = line.partition("Function : ")[2].strip(), Counter()
    if kernel and counts:
        yield _sass(kernel, architecture, counts)


def _sass(kernel: str, architecture: int, counts: Counter[str]) -> Sass:
    families = Counter[str]()
    for root, count in counts.items():
        if family := _FAMILY_OF.get(root):
            families[family] += count
    return Sass(kernel, architecture, counts.total(), families)


def asked_of(kernel: Kernel) -> set[str]:
    """The families that a kernel's PTX asks for."""
    opcodes = {s.opcode for s in kernel.statements if isinstance(s, Instruction)}
    return {family for start, family in _ASKED.items() if any(o.startswith(start) for o in opcodes)}


def check_machine_code(found: Iterable[Sass], files: Iterable[PtxFile]) -> list[str]:
    """Every family that a kernel's PTX asks for is in its machine code, and local memory is not."""
    asked = {(k.name, f.architecture): asked_of(k) for f in files for k in f.module.kernels}
    wrong = []
    for s in found:
        wanted = asked.pop((s.kernel, s.architecture), set())
        wrong += [
            f"{s.kernel} on sm_{s.architecture}: its PTX asks for {family}, its machine code has none"
            for family in sorted(wanted)
            if not s.families.get(family)
        ]
        if s.families.get("local"):
            wrong.append(
                f"{s.kernel} on sm_{s.architecture}: {s.families['local']} accesses to local memory"
            )
    wrong += [f"{name} on sm_{arch}: PTX without machine code" for name, arch in sorted(asked)]
    return wrong


def table(found: Sequence[Sass], names: Mapping[str, str], nvcc_version: str) -> str:
    """docs/kernels/instructions.md; `names`: how a person reads a kernel's name."""
    cells: dict[str, dict[int, str]] = {}
    architectures = sorted({s.architecture for s in found})
    for s in found:
        counts = [s.families.get(family, 0) for family in ("mma", "ldmatrix", "cp.async")]
        special = " / ".join(map(str, counts)) if any(counts) else "-"
        cells.setdefault(names[s.kernel], {})[s.architecture] = f"{s.size} ({special})"
    lines = [
        f"| `{name}` | " + " | ".join(cells[name].get(a, "") for a in architectures) + " |"
        for name in sorted(cells)
    ]
    head = " | ".join(f"sm_{a}" for a in architectures)
    return _HEAD.format(
        version=nvcc_version, head=head, lines="|---" * (len(architectures) + 1)
    ) + ("\n".join(lines) + "\n")


_HEAD = """\
# Machine instructions of the kernels

Written by `python scripts/check_kernels.py --write`, with nvcc {version}: instructions in all, and of them tensor core
products / ldmatrix / asynchronous copies. `make check-kernels` fails if a kernel whose PTX asks for one of these got
none, or touches local memory. These are facts of the compiler, not of a run on a GPU.

| kernel | {head} |
{lines}|
"""
