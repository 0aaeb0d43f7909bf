"""The plugin library: found, identified by hash before anything of it is loaded, and asked what it has.

Owns what a library is called in a manifest (`PluginLibrary`), and the comparison of its ops with those of an artefact.
Refuses a file that is no library for this machine, one of another hash than expected, an op that is registered twice,
and ops that it lacks or has in another version: all of them at once, both sides named.
"""

from __future__ import annotations

import ctypes
import hashlib
import platform
import struct
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ds4export.config.strict_json import read_regular_file
from ds4export.engine.shells import MARK
from ds4export.errors import ToolchainError
from ds4export.ptxhost.toolchain import BUILD

NAMESPACE = "ds4"
KERNELS, DOES_NOTHING = "kernels", "does-nothing"
KINDS = (KERNELS, DOES_NOTHING)
MAX_LIBRARY_BYTES = 2 << 30
_MACHINES = {"x86_64": 62, "aarch64": 183}  # e_machine of ELF


@dataclass(frozen=True)
class PluginLibrary:
    """One library file; `kind` is KERNELS, or DOES_NOTHING for the library of shells."""

    file: str
    sha256: str
    nbytes: int
    kind: str

    def __str__(self) -> str:
        return f"{self.file}, {self.nbytes} bytes, sha256 {self.sha256[:16]}…, {self.kind}"


def find_library(given: Path | None = None) -> Path:
    """The library named by the user, else the one that `make plugins` has built.

    Raises:
        ToolchainError: there is none.
    """
    if given is not None:
        return given
    built = sorted((BUILD / "plugins").glob("libds4plugins_trt*.so"))
    if built:
        return built[-1]
    raise ToolchainError(
        "the plugin library is not built",
        where=BUILD / "plugins",
        found="no libds4plugins_trt*.so",
        expected="the plugins of the ops, compiled on this machine",
        hint="run `make plugins`, or name a library with --plugins FILE",
    )


def identify(path: Path) -> PluginLibrary:
    """Size, hash and kind of a library; nothing of it is loaded.

    Raises:
        ToolchainError: not a whole shared library for this machine.
    """
    content = read_regular_file(path, MAX_LIBRARY_BYTES, ToolchainError)
    found = _what_it_is(content)
    if found:
        raise ToolchainError(
            "the plugin library is not a shared library for this machine",
            where=path,
            found=found,
            expected=f"a whole ELF library for {platform.machine()}",
            hint="build it again with `make plugins`",
        )
    kind = DOES_NOTHING if f"\0{MARK}\0".encode() in content else KERNELS
    return PluginLibrary(path.name, hashlib.sha256(content).hexdigest(), len(content), kind)


def _what_it_is(content: bytes) -> str:
    """Nothing if it is a whole library, else what it is. A truncated one would stop the process when loaded."""
    if len(content) < 64 or content[:5] != b"\x7fELF\x02":
        return f"{len(content)} bytes that are no 64-bit ELF file"
    kind, machine = struct.unpack_from("<HH", content, 16)
    if kind != 3 or machine != _MACHINES.get(platform.machine()):
        return f"ELF type {kind}, machine {machine}"
    (sections,) = struct.unpack_from("<Q", content, 40)
    size, count = struct.unpack_from("<HH", content, 58)
    end = sections + size * count
    return "" if 64 <= end <= len(content) else f"{len(content)} bytes, its header speaks of {end}"


def check_identity(found: PluginLibrary, expected: PluginLibrary, path: Path) -> None:
    """The library is the very one that an engine was built with.

    Raises:
        ToolchainError: it is another.
    """
    if (found.sha256, found.kind) != (expected.sha256, expected.kind):
        raise ToolchainError(
            "the plugin library is not the one this engine was built with",
            where=path,
            found=found,
            expected=expected,
            hint="use the library of that build, or build the engine again with this one",
        )


@contextmanager
def loaded(path: Path, library: PluginLibrary, trt: Any) -> Iterator[dict[str, str]]:
    """Register the library's creators; yields the version of each op. A Builder with a logger must exist already.

    Raises:
        ToolchainError: the file is another, the system or TensorRT refuses it, an op is registered twice.
    """
    check_identity(identify(path), library, path)
    _load(path)
    registry = trt.get_plugin_registry()
    handle = registry.load_library(str(path))
    if handle is None:
        raise ToolchainError(
            "TensorRT does not take the plugin library",
            where=path,
            found="a library without getCreators or setLoggerFinder, for another major version, "
            "or of ops that are registered already",
            expected=f"plugins for TensorRT {trt.__version__}",
            hint="build it again with `make plugins`",
        )
    try:
        yield _versions(registry.all_creators, path)
    finally:
        registry.deregister_library(handle)


def _versions(creators: Iterable[Any], path: Path) -> dict[str, str]:
    """The version of each op. Of two creators for one op TensorRT would take one without a word."""
    found: dict[str, list[str]] = {}
    for creator in creators:
        if creator.plugin_namespace == NAMESPACE:
            found.setdefault(str(creator.name), []).append(f"version {creator.plugin_version}")
    twice = {op: versions for op, versions in found.items() if len(versions) > 1}
    if twice:
        raise ToolchainError(
            f"{', '.join(sorted(twice))}: registered twice",
            where=path,
            found="; ".join(f"{op} {' and '.join(twice[op])}" for op in sorted(twice)),
            expected="one creator for each op",
            hint="build the library again with `make plugins`, and start again: until the process ends, TensorRT "
            "takes no other library of these ops",
        )
    return {op: versions[0].removeprefix("version ") for op, versions in found.items()}


def _load(path: Path) -> None:
    """TensorRT only says that it failed; the system's loader says why."""
    try:
        ctypes.CDLL(str(path.resolve()))
    except OSError as cause:
        raise ToolchainError(
            "the plugin library cannot be loaded",
            where=path,
            found=str(cause),
            expected="a library whose own libraries are installed, libcudart among them",
            hint="install the CUDA runtime it names, or build it again with `make plugins`",
        ) from None


def check_ops(has: Mapping[str, str], needs: Mapping[str, int], path: Path) -> None:
    """Every op of the artefact has a plugin of its version.

    Raises:
        ToolchainError: some have none, or one of another version; all are listed.
    """
    missing = sorted(op for op in needs if op not in has)
    other = sorted(op for op in needs if op in has and has[op] != str(needs[op]))
    if not missing and not other:
        return
    found = ([f"no plugin for {', '.join(missing)}"] if missing else []) + [
        f"{op} version {has[op]}" for op in other
    ]
    expected = (["a plugin for every op"] if missing else []) + [
        f"{op} version {needs[op]}" for op in other
    ]
    raise ToolchainError(
        f"the plugin library lacks {len(missing) + len(other)} of the {len(needs)} ops of this artefact",
        where=path,
        found="; ".join(found),
        expected=f"as the artefact has them: {'; '.join(expected)}",
        hint="build the library from the sources that this package was installed with: `make plugins`",
    )
