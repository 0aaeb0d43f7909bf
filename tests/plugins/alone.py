"""One op's folder compiled by itself, as PTX of one architecture: for planted faults, and for a kernel under work.

The shell around it is the one that `make plugins` has built.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from ds4export.ptxhost.toolchain import BUILD, PLUGINS, Toolchain
from tests.plugins.check import FOLDERS

ARCHITECTURE = 80


def alone(
    op: str,
    tools: Toolchain,
    folder: Path,
    change: Callable[[Path], None] = lambda _: None,
    *,
    architecture: int = ARCHITECTURE,
) -> Path:
    """A library in `folder` with the kernels of the op's folder and the op's plugin; `change` edits a copy first.

    Raises:
        AssertionError: it does not compile.
    """
    shutil.rmtree(folder, ignore_errors=True)
    own = FOLDERS.get(op, op)
    for part in ("common", own):
        shutil.copytree(PLUGINS / part, folder / part)
    change(folder)
    launchers = sorted((folder / own).glob("*.cu"))
    registry = folder / "registry.cpp"
    registry.write_text(_registry(op, launchers), encoding="utf-8")
    sources = [registry, *launchers]
    objects = [folder / f"{s.stem}.o" for s in sources]
    for source, made in zip(sources, objects, strict=True):
        words: list[str | Path] = ["-c", source, f"-I{folder}", "-isystem", tools.tensorrt_include]
        _nvcc(tools, words, made, architecture)
    out = folder / "libds4plugins_alone.so"
    _nvcc(tools, ["-shared", *objects, _shell()], out, architecture)
    return out


def _nvcc(tools: Toolchain, words: Sequence[str | Path], out: Path, architecture: int) -> None:
    command: list[str | Path] = [
        *(
            tools.nvcc,
            "-std=c++20",
            "-O1",
            "-Xcompiler=-fPIC,-fvisibility=hidden",
            "-cudart=shared",
        ),
        f"-gencode=arch=compute_{architecture},code=compute_{architecture}",
        *words,
        *("-o", out),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{out}: does not compile\n{done.stderr[-2000:]}"


def _registry(op: str, launchers: Sequence[Path]) -> str:
    """registry.cpp with the line of one op, also of an op that it does not have yet."""
    text = (PLUGINS / "registry.cpp").read_text(encoding="utf-8")
    lines = re.findall(r"^ +DS4_OP\w*\(\w+\),\n", text, re.M)
    with_workspace = any("workspace_bytes(" in f.read_text(encoding="utf-8") for f in launchers)
    line = f"      {'DS4_OP_WITH_WORKSPACE' if with_workspace else 'DS4_OP'}({op}),\n"
    own = next((given for given in lines if f"({op})" in given), line)
    return text.replace("".join(lines), own)


def _shell() -> Path:
    return BUILD / "plugins/CMakeFiles/ds4plugins.dir/common/plugin.cpp.o"
