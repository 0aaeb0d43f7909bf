"""One op's folder compiled by itself, as PTX of one architecture: for planted faults, and for a kernel under work.

The shell around it is the one that `make plugins` has built.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import uuid
from collections.abc import Callable, Sequence
from fnmatch import fnmatch
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
    changed: str = "*",
) -> Path:
    """A library in `folder` with the kernels of the op's folder and the op's plugin; `change` edits a copy first.

    `changed`: a pattern of the launch files that are compiled with the change. The others are as they are in plugins/,
    and compiled once.

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
    for i, source in enumerate(sources):
        if source in launchers and not fnmatch(source.name, changed):
            objects[i] = _unchanged(own, source.name, tools, architecture)
        else:
            _compile(tools, source, folder, objects[i], architecture)
    out = folder / "libds4plugins_alone.so"
    _nvcc(tools, ["-shared", *objects, _shell()], out, architecture)
    return out


def _compile(tools: Toolchain, source: Path, root: Path, out: Path, architecture: int) -> None:
    words: list[str | Path] = ["-c", source, f"-I{root}", "-isystem", tools.tensorrt_include]
    _nvcc(tools, words, out, architecture)


def _unchanged(own: str, name: str, tools: Toolchain, architecture: int) -> Path:
    """The object of a launch file of plugins/, by the content of all that it may include."""
    read = [
        f for part in ("common", own) for f in sorted((PLUGINS / part).iterdir()) if f.is_file()
    ]
    content = b"\0".join([tools.nvcc_version.encode(), *(f.read_bytes() for f in read)])
    digest = hashlib.sha256(content).hexdigest()[:16]
    out = BUILD / "alone/unchanged" / f"{own}-{Path(name).stem}-sm_{architecture}-{digest}.o"
    if not out.exists():
        out.parent.mkdir(parents=True, exist_ok=True)
        part = out.with_name(f"{uuid.uuid4().hex}.o")  # another thread may be making the same
        _compile(tools, PLUGINS / own / name, PLUGINS, part, architecture)
        part.rename(out)
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
