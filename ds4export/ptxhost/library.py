"""The PTX inside a plugin library: one module per source file and architecture, and which of it is distinct.

Architectures often get the same code under other register names; such code is run once.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ds4export.ptxhost.parse import Instruction, Kernel, Label, Module, PtxError, parse


@dataclass(frozen=True)
class PtxFile:
    """One embedded PTX text; `name` is what reports call it."""

    name: str
    architecture: int
    text: str
    module: Module


def embedded_ptx(library: Path, cuobjdump: Path, architecture: int | None = None) -> list[PtxFile]:
    """Everything that cuobjdump finds, or what of it is for one architecture."""
    wanted = (
        f".sm_{architecture}.ptx" if architecture else "all"
    )  # cuobjdump takes a part of the name
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [cuobjdump, "--extract-ptx", wanted, library.resolve()],
            cwd=folder,
            check=True,
            capture_output=True,
        )
        return [_ptx_file(path) for path in sorted(Path(folder).glob("*.ptx"))]


def _ptx_file(path: Path) -> PtxFile:
    text = path.read_text(encoding="utf-8")
    try:
        module = parse(text)
    except PtxError as error:
        raise PtxError(error.line, error.text, f"{path.name}: {error.why}") from None
    found = re.fullmatch(r"sm_(\d+)[af]?", module.target)
    assert found, f"{path.name} is for `{module.target}`"
    return PtxFile(path.name, int(found[1]), text, module)


def canonical(kernel: Kernel) -> str:
    """The code of a kernel with registers and labels renamed in the order in which they appear."""
    new: dict[str, str] = {}
    lines = []
    for s in kernel.statements:
        match s:
            case Instruction():
                text = f"@{s.guard} {s.opcode} {', '.join(s.operands)}"
                lines.append(_renamed(text, new))
            case Label():
                lines.append(_renamed(s.name + ":", new))
            case _:
                pass
    return "\n".join(lines)


def _renamed(text: str, new: dict[str, str]) -> str:
    def rename(found: re.Match[str]) -> str:
        return new.setdefault(found.group(), f"${len(new)}")

    return re.sub(r"%[a-z]+\d+\b|\$L_\w+", rename, text)


def distinct_architectures(files: Iterable[PtxFile]) -> Mapping[int, list[str]]:
    """The architectures to run, in order, each with the kernels whose code no earlier one has."""
    seen: set[tuple[str, str]] = set()
    chosen: dict[int, list[str]] = {}
    for file in sorted(files, key=lambda f: f.architecture):
        for kernel in file.module.kernels:
            key = (kernel.name, canonical(kernel))
            if key not in seen:
                seen.add(key)
                chosen.setdefault(file.architecture, []).append(kernel.name)
    return chosen
