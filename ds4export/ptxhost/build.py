"""Compiles the host half: the stand-in CUDA runtime with a library's own kernels in it, and the plugin host.

Owns the flags of the three variants and a cache of objects by content. A compile that fails ends the build with the
compiler's words: it is never taken for a fault that was found.
"""

from __future__ import annotations

import hashlib
import subprocess
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from ds4export.errors import ToolchainError
from ds4export.ptxhost.emit import translate
from ds4export.ptxhost.library import PtxFile
from ds4export.ptxhost.toolchain import BUILD, PLUGINS, Toolchain

HOST = PLUGINS / "host"
CACHE = BUILD / "host"
RUNTIME = "libcudart.so.13"  # the name under which nvcc's libraries ask for it
RUNTIME_SOURCES = ("cudart.cpp", "block.cpp", "fibre.cpp", "warp.cpp")
HOST_SOURCES = ("plugin_host.cpp", "life.cpp")
COMMON = ("-std=c++20", "-g1", "-fPIC", "-Wall", "-Wextra", "-Werror")
# A translation reads memory under other types than it was written with, and must not fuse what PTX keeps apart.
TRANSLATION = (
    "-fno-strict-aliasing",
    "-ffp-contract=off",
    *(
        f"-Wno-unused-{what}"
        for what in ("variable", "label", "value", "but-set-variable", "function")
    ),
    "-Wno-tautological-compare",
    "-Wno-type-limits",
)


class Variant(Enum):
    """How the host half is instrumented."""

    PLAIN = "plain"
    ADDRESS = "asan"
    THREAD = "tsan"


_FLAGS = {
    Variant.PLAIN: ("-O1",),
    Variant.ADDRESS: ("-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
    Variant.THREAD: ("-O1", "-fsanitize=thread"),
}
# Large kernels: checks as calls, and none that `from` and `to` of ptx.h or a fault of the processor make anyway.
_TRANSLATION_FLAGS = {
    Variant.PLAIN: (),
    Variant.ADDRESS: (
        "--param=asan-instrumentation-with-call-threshold=0",
        "-fno-sanitize=alignment,null,object-size,vptr,pointer-overflow",
    ),
    Variant.THREAD: (),
}


@dataclass(frozen=True)
class HostBuild:
    """A plugin host and the folder of the runtime that it must find."""

    program: Path
    runtime_folder: Path
    variant: Variant
    architecture: int


def build_host(
    files: Sequence[PtxFile], architecture: int, variant: Variant, tools: Toolchain
) -> HostBuild:
    """The plugin host for one architecture's PTX in one variant."""
    own = [f for f in files if f.architecture == architecture]
    objects = [*_runtime_objects(variant, tools), *(translated_object(f, variant) for f in own)]
    folder = CACHE / variant.value / f"sm_{architecture}-{_digest(map(str, objects))}"
    runtime = folder / RUNTIME
    if not runtime.exists():
        folder.mkdir(parents=True, exist_ok=True)
        exports = CACHE / "exports"
        _write(exports, RUNTIME + " { global: cuda*; __cuda*; local: *; };\n")
        link = ["-shared", *objects, f"-Wl,-soname,{RUNTIME}", f"-Wl,--version-script={exports}"]
        _make(["g++", *_FLAGS[variant], *link], runtime)
    parts = [_object(HOST / s, variant, tools, watched=True) for s in HOST_SOURCES]
    program = folder / f"plugin_host-{_digest(map(str, parts))}"
    if not program.exists():
        _make(["g++", *_FLAGS[variant], *parts, runtime, "-ldl"], program)
    return HostBuild(program, folder, variant, architecture)


def _runtime_objects(variant: Variant, tools: Toolchain) -> list[Path]:
    return [_object(HOST / s, variant, tools, watched=False) for s in RUNTIME_SOURCES]


def _object(source: Path, variant: Variant, tools: Toolchain, *, watched: bool) -> Path:
    flags = [*COMMON, *_FLAGS[variant]]
    if variant is Variant.THREAD and not watched:  # see plugins/host/sanitizers.h
        flags = [*COMMON, "-O1", "-DDS4_HOST_TSAN"]
    includes = ["-isystem", str(tools.tensorrt_include), "-isystem", str(tools.cuda_include)]
    return _compiled(source, flags + includes)


def translated_object(file: PtxFile, variant: Variant) -> Path:
    """The kernels of one PTX file as an object."""
    CACHE.mkdir(parents=True, exist_ok=True)
    source = CACHE / f"{file.name}-{_digest([file.text])}.cpp"
    text = translate(file.module, file.name)
    if not source.exists() or source.read_text(encoding="utf-8") != text:
        _write(source, text)
    return _compiled(
        source, [*COMMON, *_FLAGS[variant], *_TRANSLATION_FLAGS[variant], *TRANSLATION]
    )


def _compiled(source: Path, flags: Sequence[str]) -> Path:
    headers = sorted(HOST.glob("*.h"))
    key = _digest(
        [
            source.read_text(encoding="utf-8"),
            *flags,
            *(h.read_text(encoding="utf-8") for h in headers),
        ]
    )
    out = CACHE / "objects" / f"{source.stem}-{key}.o"
    if not out.exists():
        out.parent.mkdir(parents=True, exist_ok=True)
        _make(["g++", *flags, f"-I{HOST}", "-c", source], out)
    return out


def _digest(parts: Iterable[str]) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _part(out: Path) -> Path:
    """A name beside `out` for something unfinished: others may be making the same."""
    return out.with_name(f"{out.name}.{uuid.uuid4().hex}.part")


def _write(out: Path, text: str) -> None:
    made = _part(out)
    made.write_text(text, encoding="utf-8")
    made.rename(out)


def _make(command: Sequence[object], out: Path) -> None:
    made = _part(out)
    words = [*map(str, command), "-o", str(made)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ToolchainError("a compile failed", where=" ".join(words), found=done.stderr[-2000:])
    made.rename(out)
