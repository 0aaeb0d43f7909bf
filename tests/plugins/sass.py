"""Which machine instructions the compiler really used, per kernel and architecture, against what its PTX asks for.

A kernel that asks for tensor cores, ldmatrix or asynchronous copies must have got them; none may touch local memory.
Where tensor cores multiply e4m3, the kernels that are made for it must do so; elsewhere nvcc would make other products
of it, and no kernel may ask.
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
    "mma": ("HMMA", "OMMA"),
    "mma of e4m3": ("QMMA",),
    "ldmatrix": ("LDSM",),
    "cp.async": ("LDGSTS",),
    "local": ("LDL", "STL"),
}
_FAMILY_OF = {root: family for family, roots in FAMILIES.items() for root in roots}
_ASKED = {
    r"mma\.(?!.*e4m3)": "mma",
    r"mma\..*e4m3": "mma of e4m3",
    r"ldmatrix\.": "ldmatrix",
    r"cp\.async\.c": "cp.async",
}
# Tiles of quantised weights and activations (common/tile_e4m3.cuh), and where they are products of e4m3.
_E4M3_KERNEL = re.compile(
    r"ds4_linear5tilesIN3ds4\d+(?:linear_fp8|shared_expert)|moe12tile_experts"
)
E4M3_ARCHITECTURES = (89, 120)
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
    return {family for start, family in _ASKED.items() if any(re.match(start, o) for o in opcodes)}


def check_machine_code(found: Iterable[Sass], files: Iterable[PtxFile]) -> list[str]:
    """Every family that a kernel's PTX asks for is in its machine code, e4m3 where it belongs, no local memory."""
    asked = {(k.name, f.architecture): asked_of(k) for f in files for k in f.module.kernels}
    wrong = []
    for s in found:
        wanted = asked.pop((s.kernel, s.architecture), set())
        wrong += [
            f"{s.kernel} on sm_{s.architecture}: its PTX asks for {family}, its machine code has none"
            for family in sorted(wanted)
            if not s.families.get(family)
        ]
        native = s.architecture in E4M3_ARCHITECTURES and bool(_E4M3_KERNEL.search(s.kernel))
        if native != bool(s.families.get("mma of e4m3")):
            wrong.append(
                f"{s.kernel} on sm_{s.architecture}: {s.families.get('mma of e4m3', 0)} products of e4m3,"
                f" expected {'some' if native else 'none'}"
            )
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
        shown = ("mma", "mma of e4m3", "ldmatrix", "cp.async")
        counts = [s.families.get(family, 0) for family in shown]
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
products of bf16 / of e4m3 / ldmatrix / asynchronous copies. `make check-kernels` fails if a kernel whose PTX asks for
one of these got none, if a tile of quantised weights multiplies no e4m3 on sm_89 or sm_120, or if one touches local
memory. These are facts of the compiler, not of a run on a GPU.

| kernel | {head} |
{lines}|
"""
