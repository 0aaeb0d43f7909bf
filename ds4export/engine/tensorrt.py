"""Which TensorRT a target means, and how its Python module is opened.

Owns the two flavours, the architectures each can name, and the cure for a packaging fault of the RTX wheel. Refuses a
target whose module is not installed, in one sentence that says what to install and where.
"""

from __future__ import annotations

import ctypes
import importlib
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ds4export.errors import RuntimeInputError, ToolchainError

RTX, ENTERPRISE = "tensorrt-rtx", "tensorrt"
# What a builder of TensorRT for RTX can be told to build for without a GPU; bf16 begins with SM80.
RTX_TARGETS = ("SM80", "SM86", "SM89", "SM120", "SM121")
_SONAME, _REAL = "libtensorrt_rtx.so", "libtensorrt_rtx.so.1"


@dataclass(frozen=True)
class Flavour:
    """One opened TensorRT: `module` is its Python module, everything else is text for manifests."""

    name: str
    version: str
    module: Any


def open_flavour(target: str) -> Flavour:
    """The TensorRT behind `--target`.

    Raises:
        RuntimeInputError: an unknown target.
        ToolchainError: it is not installed, or only its stub is.
    """
    if target == RTX:
        return _open_rtx()
    if target == ENTERPRISE:
        return _open_enterprise()
    raise RuntimeInputError("unknown --target", found=target, expected=f"{RTX} or {ENTERPRISE}")


@cache
def _open_rtx() -> Flavour:
    try:
        module = importlib.import_module("tensorrt_rtx")
        libraries = importlib.import_module("tensorrt_rtx_libs")
    except ImportError:
        raise ToolchainError(
            "TensorRT for RTX is not installed",
            expected="the Python package tensorrt-rtx on the machine that builds; no GPU is needed",
            hint="pip install 'ds4export[tensorrt-rtx]'",
        ) from None
    _alias_library(Path(libraries.__file__ or "").parent / _REAL)
    return Flavour(RTX, str(module.__version__), module)


def _alias_library(real: Path) -> None:
    """The ONNX parser opens a name that the wheel lacks; an empty library that needs the real one supplies it.

    Delete when the wheel carries `libtensorrt_rtx.so`.
    """
    compiler = shutil.which("cc") or shutil.which("gcc")
    if not compiler:
        raise ToolchainError(
            "there is no C compiler",
            expected=f"cc or gcc on PATH, to make `{_SONAME}`, which the tensorrt-rtx package lacks",
            hint="install gcc from the system's packages",
        )
    with tempfile.TemporaryDirectory() as folder:
        alias = Path(folder) / "alias.so"
        link = ["-Wl,--no-as-needed", f"-Wl,-soname,{_SONAME}", "-x", "none", str(real)]
        command = [compiler, "-shared", "-fPIC", "-x", "c", "/dev/null", "-o", str(alias), *link]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ToolchainError(
                f"`{_SONAME}` cannot be made", where=compiler, found=done.stderr.strip()
            )
        ctypes.CDLL(str(alias))


def _open_enterprise() -> Flavour:
    try:
        module = importlib.import_module("tensorrt")
        module.Builder  # noqa: B018  a stub has no builder
    except (ImportError, OSError, AttributeError):
        raise ToolchainError(
            "TensorRT is not installed: install TensorRT 10.16 or newer from NVIDIA, its libraries and Python "
            "package, on the machine with the GPU that the engine is for",
            expected="the Python module `tensorrt` and its libraries",
            hint="for an engine built ahead of time without a GPU, use --target tensorrt-rtx",
        ) from None
    return Flavour(ENTERPRISE, str(module.__version__), module)
