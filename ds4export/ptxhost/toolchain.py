"""Where nvcc, CMake, ninja, cuobjdump and TensorRT's headers are: installed ones first, then those of build/toolchain.

Owns the search and its refusal. Installing is the business of scripts/build_plugins.py.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from ds4export.errors import ToolchainError

REPOSITORY = Path(__file__).parent.parent.parent
PLUGINS = REPOSITORY / "plugins"
BUILD = REPOSITORY / "build"
PACKAGES = BUILD / "toolchain"  # filled by pip --target, see plugins/toolchain.txt
CUDA_PACKAGES = PACKAGES / "nvidia" / "cu13"
_PACKAGED = {"cmake": PACKAGES / "cmake/data/bin/cmake", "ninja": PACKAGES / "bin/ninja"}


@dataclass(frozen=True)
class Toolchain:
    """Paths that exist; `nvcc_version` is what nvcc says of itself."""

    nvcc: Path
    nvcc_version: str
    cuda_include: Path
    cuobjdump: Path
    tensorrt_include: Path


def find_toolchain() -> Toolchain:
    """Everything that building and checking plugins needs, or one sentence that says what is missing."""
    nvcc = _program("nvcc", "a CUDA compiler")
    release = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    return Toolchain(
        nvcc=nvcc,
        nvcc_version=release.split(", V")[-1].split()[0],
        cuda_include=_folder("cuda_runtime_api.h", [_include_of(nvcc), CUDA_PACKAGES / "include"]),
        cuobjdump=_program("cuobjdump", "cuobjdump of the CUDA toolkit"),
        tensorrt_include=_folder("NvInfer.h", _tensorrt_folders()),
    )


def builders() -> tuple[Path, Path]:
    """CMake and ninja."""
    return _program("cmake", "CMake"), _program("ninja", "ninja")


def missing() -> list[str]:
    """The requirement files of plugins/ that must be installed, together: pip replaces the folder that they share.

    Nothing if all is found; else those for the builders, the compiler, and the tools and headers that the machine does
    not have outside of build/toolchain.
    """
    programs = {
        "builders.txt": ("cmake", "ninja"),
        "compiler.txt": ("nvcc",),
        "toolchain.txt": ("cuobjdump",),
    }
    headers = [f for f in _tensorrt_folders() if (f / "NvInfer.h").is_file()]
    if headers and all(_found(name) for names in programs.values() for name in names):
        return []
    installed = {file: all(map(shutil.which, names)) for file, names in programs.items()}
    installed["toolchain.txt"] &= any(PACKAGES not in f.parents for f in headers)
    return [file for file, is_there in installed.items() if not is_there]


def _found(name: str) -> Path | None:
    packaged = _PACKAGED.get(name, CUDA_PACKAGES / "bin" / name)
    if packaged.is_file():
        packaged.chmod(packaged.stat().st_mode | 0o111)
    installed = shutil.which(name)
    return Path(installed).resolve() if installed else packaged if packaged.is_file() else None


def _program(name: str, what: str) -> Path:
    path = _found(name)
    if path:
        return path
    raise ToolchainError(
        f"`{name}` is not installed",
        where=f"PATH and {PACKAGES}",
        expected=what,
        hint="`make plugins` installs it from the package index",
    )


def _include_of(nvcc: Path) -> Path:
    """A wrapper on PATH may stand elsewhere than its toolkit; a dry run tells."""
    told = subprocess.run(
        [nvcc, "--dryrun", "-x", "cu", os.devnull], capture_output=True, text=True, check=False
    ).stderr
    top = next((line.split("TOP=")[1] for line in told.splitlines() if "TOP=" in line), "")
    return Path(top) / "include"


def _tensorrt_folders() -> list[Path]:
    root = os.environ.get("TENSORRT_ROOT")
    return [*([Path(root) / "include"] if root else []), PACKAGES / "kernel_lens/include/tensorrt"]


def _folder(header: str, folders: list[Path]) -> Path:
    for folder in folders:
        if (folder / header).is_file():
            return folder
    raise ToolchainError(
        f"`{header}` is not installed",
        where=", ".join(map(str, folders)),
        hint="`make plugins` installs it from the package index, or set TENSORRT_ROOT",
    )
