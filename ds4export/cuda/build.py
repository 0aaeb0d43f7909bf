"""libds4kernels.so by plain calls of nvcc: no CMake, no TensorRT; one architecture, a few compiles at a time.

Owns the flags and a cache of objects by content. Refuses to go on after a compile that failed, with the compiler's
words; warnings are kept for the caller, since another nvcc warns of other things.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from ds4export.errors import ToolchainError
from ds4export.ptxhost.toolchain import BUILD, CUDA_PACKAGES, PLUGINS

FOLDER = BUILD / "gpu"
_REGISTERED = re.compile(r"^ +DS4_OP\w*\((\w+)\),\n", re.M)


@dataclass(frozen=True)
class Target:
    """What to build for.

    `architecture` is 90 for sm_90. The code is for that GPU alone; with `for_stand_in` its PTX is kept beside it and
    the runtime is the shared one, so that the stand-in of ptxhost can take its place. `sources` is another folder than
    plugins/ where a fault was planted.
    """

    architecture: int
    for_stand_in: bool = False
    sources: Path = PLUGINS

    def flags(self) -> tuple[str, ...]:
        """Of every compile."""
        virtual, real = f"compute_{self.architecture}", f"sm_{self.architecture}"
        code = f"[{real},{virtual}]" if self.for_stand_in else real
        lines = () if self.for_stand_in else ("-lineinfo",)
        return (
            *(
                "-std=c++20",
                "-O3",
                "-DNDEBUG",
                f"-I{self.sources}",
                f"-gencode=arch={virtual},code={code}",
            ),
            *(
                "-Xptxas=-warn-spills,-warn-lmem-usage",
                "-Xcompiler=-fPIC,-Wall,-fvisibility=hidden",
            ),
            *lines,
        )

    def link_flags(self) -> tuple[str, ...]:
        """The static runtime needs no library that a machine may lack, and shares torch's context all the same."""
        return ("-shared", "-cudart", "shared" if self.for_stand_in else "static")


@dataclass(frozen=True)
class KernelBuild:
    """A library that was built, with what the compiler warned of."""

    library: Path
    nvcc: Path
    nvcc_version: str
    num_compiled: int
    warnings: tuple[str, ...] = field(default=())


def find_nvcc() -> Path:
    """On PATH, in CUDA_HOME, where toolkits are installed, or from the package index.

    Raises:
        ToolchainError: nowhere.
    """
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    places = [*(Path(h) / "bin/nvcc" for h in homes if h), CUDA_PACKAGES / "bin/nvcc"]
    on_path = shutil.which("nvcc")
    found = on_path or next((p for p in places if os.access(p, os.X_OK)), None)
    if found is None:
        raise ToolchainError(
            "there is no CUDA compiler",
            where="PATH, CUDA_HOME, /usr/local/cuda",
            expected="nvcc 12.0 or newer",
            hint="install the CUDA toolkit, or set CUDA_HOME to it",
        )
    return Path(found)


def registered_ops() -> tuple[str, ...]:
    """The ops that plugins/registry.cpp names."""
    return tuple(_REGISTERED.findall(_registry(PLUGINS)))


def build_library(
    target: Target, *, ops: Sequence[str] | None = None, jobs: int = 2, nvcc: Path | None = None
) -> KernelBuild:
    """Compile what has changed, and link.

    Args:
        target: the GPU, or the stand-in.
        ops: of these ops alone; of all that have a kernel by default.
        jobs: compiles at a time.
        nvcc: the compiler; `find_nvcc` by default.

    Raises:
        ToolchainError: there is no compiler, or it fails.
    """
    nvcc = nvcc or find_nvcc()
    chosen = registered_ops() if ops is None else tuple(ops)
    compiled = _compile_all(target, chosen, nvcc, (target.sources / "launchers.cpp",), (), jobs)
    objects = [c.path for c in compiled]
    name = f"sm_{target.architecture}-{_digest(*map(str, objects), *target.link_flags())}"
    library = FOLDER / name / "libds4kernels.so"
    if not library.exists():
        library.parent.mkdir(parents=True, exist_ok=True)
        part = library.with_suffix(f".{os.getpid()}")
        run_compiler([nvcc, *target.link_flags(), *objects, "-o", part])
        part.rename(library)
    warnings = tuple(c.warning for c in compiled if c.warning)
    return KernelBuild(library, nvcc, _version(nvcc), sum(c.is_new for c in compiled), warnings)


def compile_objects(
    target: Target,
    ops: Sequence[str],
    nvcc: Path,
    *,
    more: Sequence[Path],
    flags: Sequence[str] = (),
    jobs: int = 2,
) -> list[Path]:
    """The objects of a library of these ops: registry, launchers, and `more` sources.

    Raises:
        ToolchainError: a compile fails.
    """
    return [c.path for c in _compile_all(target, ops, nvcc, more, flags, jobs)]


def _compile_all(
    target: Target,
    ops: Sequence[str],
    nvcc: Path,
    more: Sequence[Path],
    flags: Sequence[str],
    jobs: int,
) -> list[_Object]:
    registry, launchers = _registry_of(ops, target.sources), _launchers(ops, target.sources)
    version = _version(nvcc)
    with ThreadPoolExecutor(jobs) as pool:
        every = [
            *(pool.submit(_compiled, s, nvcc, version, target, ()) for s in (registry, *launchers)),
            *(pool.submit(_compiled, s, nvcc, version, target, flags) for s in more),
        ]
    return [one.result() for one in every]


def _registry(sources: Path) -> str:
    return (sources / "registry.cpp").read_text(encoding="utf-8")


def _registry_of(ops: Sequence[str], plugins: Path) -> Path:
    """The registry with the lines of these ops alone."""
    unknown = sorted(set(ops) - set(registered_ops()))
    if unknown:
        raise ToolchainError(
            "there is no kernel of that name",
            where=plugins / "registry.cpp",
            found=", ".join(unknown),
            expected=", ".join(registered_ops()),
        )
    text = _REGISTERED.sub(lambda m: m[0] if m[1] in ops else "", _registry(plugins))
    path = FOLDER / f"registry-{_digest(text)}.cpp"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return path


def _launchers(ops: Sequence[str], plugins: Path) -> list[Path]:
    """Every .cu of the folders that define a launcher of these ops."""
    folders = {source.parent for op in ops for source in (_launcher(op, plugins),)}
    return [path for folder in sorted(folders) for path in sorted(folder.glob("*.cu"))]


def _launcher(op: str, plugins: Path) -> Path:
    defines = re.compile(rf"namespace ds4::{op} {{|Status {op}::launch")
    for path in sorted(plugins.glob("*/*_launch.cu")):
        if defines.search(path.read_text(encoding="utf-8")):
            return path
    raise ToolchainError(f"no file defines the launcher of `{op}`", where=plugins)


@dataclass(frozen=True)
class _Object:
    path: Path
    is_new: bool
    warning: str


def _compiled(
    source: Path, nvcc: Path, version: str, target: Target, flags: Sequence[str]
) -> _Object:
    used = _included(source, target.sources)
    texts = (p.read_text(encoding="utf-8") for p in (source, *used))
    out = (
        FOLDER / "objects" / f"{source.stem}-{_digest(version, *target.flags(), *flags, *texts)}.o"
    )
    warning = out.with_suffix(".txt")
    is_new = not out.exists()
    if is_new:
        out.parent.mkdir(parents=True, exist_ok=True)
        part = out.with_suffix(f".{os.getpid()}.o")
        said = run_compiler([nvcc, *target.flags(), *flags, "-c", source, "-o", part])
        warning.write_text(said, encoding="utf-8")
        part.rename(out)
    return _Object(out, is_new, warning.read_text(encoding="utf-8").strip())


def _included(source: Path, plugins: Path) -> list[Path]:
    """The headers of plugins/ that a source reaches, in a fixed order."""
    seen: set[Path] = set()
    waiting = [source]
    for path in waiting:
        for name in re.findall(r'^#include "([^"]+)"', path.read_text(encoding="utf-8"), re.M):
            found = next((p for p in (path.parent / name, plugins / name) if p.is_file()), None)
            assert found, f"{path.name} includes {name}, which is not in plugins/"
            if found.resolve() not in seen:
                seen.add(found.resolve())
                waiting.append(found)
    return sorted(seen)


def _version(nvcc: Path) -> str:
    told = run_compiler([nvcc, "--version"])
    return told.split(", V")[-1].split()[0]


def run_compiler(command: Sequence[object]) -> str:
    """What a compile or link said; ptxas warns on stdout.

    Raises:
        ToolchainError: it failed.
    """
    words = [str(word) for word in command]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stdout + done.stderr)[-2000:]
        raise ToolchainError("a compile failed", where=" ".join(words), found=said)
    return done.stdout + done.stderr


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
