"""Importing ds4export where only torch and numpy are installed: what is absent gets a module of placeholders.

Owns nothing of the absent packages: an attribute can be named, as modules do at their top, and refuses to be used. The
one exception is `ml_dtypes.bfloat16`, a dtype of two bytes by that name, which is all that reading weights asks of it.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np

from ds4export.errors import ToolchainError

# What modules on the way to the ops, the model and its runner import at their top.
PACKAGES = ("ml_dtypes", "onnx_ir", "onnxruntime", "rich", "safetensors", "tokenizers", "typer")


def allow_absent_packages() -> tuple[str, ...]:
    """Make the packages that are not installed importable; call before anything else of ds4export is imported.

    Returns:
        The names of those that are absent.
    """
    absent = tuple(name for name in PACKAGES if not _is_installed(name))
    if absent:
        sys.meta_path.append(_Finder(absent))
    return absent


def _is_installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # a finder that forbids it
        return False


class _Placeholder(type):
    """A name of an absent package: it may be passed around and has names of its own, but cannot be used."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _placeholder(f"{cls.__qualname__}.{name}")

    def __call__(cls, *_: Any, **__: Any) -> Any:
        package = cls.__qualname__.split(".")[0]
        raise ToolchainError(
            f"`{cls.__qualname__}` is not available", found=f"no package `{package}`"
        )


def _placeholder(name: str) -> Any:
    return _Placeholder(name.rsplit(".", 1)[-1], (), {"__qualname__": name})


class _AbsentModule(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if (self.__name__, name) == ("ml_dtypes", "bfloat16"):
            return BFLOAT16
        return _placeholder(f"{self.__name__}.{name}")


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Stands last on the path: it answers for what nobody else has found."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names

    def find_spec(
        self, fullname: str, path: object = None, target: object = None
    ) -> importlib.machinery.ModuleSpec | None:
        """The spec of an absent package or of a module in it."""
        if fullname.split(".")[0] not in self.names:
            return None
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return _AbsentModule(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Nothing is executed."""


# numpy names a dtype by its scalar and bits: this one is `bfloat16`.
_SCALAR = type("bfloat", (np.void,), {"__doc__": "The scalar of the dtype below."})
BFLOAT16: np.dtype[Any] = np.dtype((_SCALAR, [("bits", "<i2")]))
