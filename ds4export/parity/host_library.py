"""The plugin host over the library that `make plugins` has built: found, compiled once, remembered.

Owns the check that this machine can run it, and the record of what was compiled for which library. Refuses a machine
without the library or the tools, and a library without kernels, before any work starts.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from ds4export.engine.plugins import KERNELS, find_library, identify
from ds4export.errors import ToolchainError
from ds4export.ptxhost.build import CACHE, HOST, HostBuild, Variant, build_host
from ds4export.ptxhost.library import PtxFile, embedded_ptx
from ds4export.ptxhost.plugin_host import PluginHost
from ds4export.ptxhost.toolchain import find_toolchain
from ds4export.report import Reporter

ARCHITECTURE = 80
RECORDS = CACHE / "libraries"
_TRANSLATOR = Path(__file__).parent.parent / "ptxhost"


@dataclass(frozen=True)
class HostLibrary:
    """A plugin library and the host that was compiled for it."""

    path: Path
    build: HostBuild

    def start(self) -> PluginHost:
        """A new process with the library in it."""
        return PluginHost(self.build, self.path)


def check_host() -> None:
    """The library is there, and its host is compiled or can be.

    Raises:
        ToolchainError: what is missing, and what to do.
    """
    if is_compiled():
        return
    find_toolchain()
    if shutil.which("g++") is None:
        raise ToolchainError(
            "`g++` is not installed",
            where="PATH",
            expected="the C++ compiler that translated kernels are compiled with",
            hint="install g++, for example `apt-get install g++`",
        )


def is_compiled() -> bool:
    """Whether the library that is built now has its host already; raises if there is no library."""
    return _recorded(_record(find_library())) is not None


def open_host_library() -> HostLibrary:
    """The library and its host; the kernels are translated and compiled on first use, which takes minutes.

    Raises:
        ToolchainError: something is missing or does not compile.
    """
    check_host()
    path = find_library()
    record = _record(path)
    build = _recorded(record)
    if build is None:
        Reporter().note(f"compiling the kernels of {path.name} for this machine, once: minutes")
        tools = find_toolchain()
        files = [_by_content(f) for f in embedded_ptx(path, tools.cuobjdump, ARCHITECTURE)]
        build = build_host(files, ARCHITECTURE, Variant.PLAIN, tools)
        record.parent.mkdir(parents=True, exist_ok=True)
        places = {"program": str(build.program), "runtime_folder": str(build.runtime_folder)}
        record.write_text(json.dumps(places), encoding="utf-8")
    return HostLibrary(path, build)


def _by_content(file: PtxFile) -> PtxFile:
    """Named so that a library with one kernel more has one file more to compile."""
    digest = hashlib.sha256(file.text.encode()).hexdigest()[:16]
    return replace(file, name=f"sm_{file.architecture}-{digest}")


def _record(library: Path) -> Path:
    """Where it is written what was compiled for the library by these sources.

    Raises:
        ToolchainError: the file is no library, or one whose plugins do nothing.
    """
    found = identify(library)
    if found.kind != KERNELS:
        raise ToolchainError(
            "the plugins of this library do nothing",
            where=library,
            found=found.kind,
            expected="a library with kernels",
            hint="build it with `make plugins`",
        )
    content = hashlib.sha256(found.sha256.encode())
    for source in _sources():
        content.update(source.read_bytes())
    return RECORDS / f"sm_{ARCHITECTURE}-{content.hexdigest()[:16]}.json"


def _sources() -> Iterator[Path]:
    yield from sorted(HOST.iterdir())
    yield from sorted(_TRANSLATOR.glob("*.py"))


def _recorded(record: Path) -> HostBuild | None:
    if not record.is_file():
        return None
    places = json.loads(record.read_text(encoding="utf-8"))
    program, folder = Path(places["program"]), Path(places["runtime_folder"])
    if not (program.is_file() and folder.is_dir()):
        return None
    return HostBuild(program, folder, Variant.PLAIN, ARCHITECTURE)
