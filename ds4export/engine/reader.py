"""Opening an engine folder: every check before anything is loaded.

Refuses folders that are incomplete, altered or foreign, and says on which side a library, a TensorRT or a GPU differs
from what the engine was built with.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from ds4export.artefact.manifest import FileInfo
from ds4export.artefact.reader import MANIFEST, MAX_MANIFEST_BYTES
from ds4export.config.strict_json import parse_json, read_regular_file
from ds4export.engine.manifest import FORMAT, EngineManifest, engine_manifest_from_json
from ds4export.engine.plan_file import MAX_PLAN_BYTES, unpack_plan
from ds4export.engine.plugins import DOES_NOTHING, check_identity, identify
from ds4export.errors import ArtefactError, ToolchainError


@dataclass(frozen=True)
class Engine:
    """An engine folder whose files are the ones its manifest names."""

    path: Path
    manifest: EngineManifest

    def read_plan(self, graph: str) -> bytes:
        """What TensorRT deserialises; the very bytes whose hash was compared, read once.

        Raises:
            ArtefactError: the file is not the one that was built.
        """
        name, plan_bytes = self.manifest.graphs[graph].plan, self.manifest.graphs[graph].plan_bytes
        stored = _checked(self.path / name, self.manifest.files[name])
        return unpack_plan(stored, plan_bytes, self.path / name)


def is_engine(path: Path) -> bool:
    """Whether a folder says of itself that it is an engine; whether it is a sound one, opening tells."""
    try:
        with (path / MANIFEST).open("rb") as file:
            return f'"{FORMAT}"'.encode() in file.read(4096)
    except (OSError, ValueError):
        return False


def open_engine(path: Path) -> Engine:
    """Open and check an engine folder.

    Raises:
        ArtefactError: incomplete, altered, of another version, or no engine.
    """
    if not os.path.isdir(path):
        raise ArtefactError(
            "the engine is not a folder",
            where=path,
            found="a file" if os.path.exists(path) else "no such folder",
            expected="a folder written by `ds4export build`",
        )
    place = path / MANIFEST
    content = read_regular_file(place, MAX_MANIFEST_BYTES, ArtefactError)
    raw = parse_json(content, str(place), ArtefactError)
    manifest = engine_manifest_from_json(raw, str(place))
    for name, info in manifest.files.items():
        _checked(path / name, info)
    engine = Engine(path, manifest)
    for graph in manifest.graphs:
        engine.read_plan(graph)
    return engine


def _checked(path: Path, info: FileInfo) -> bytes:
    """The content of a file, if it is the one that was built."""
    content = read_regular_file(path, MAX_PLAN_BYTES, ArtefactError)
    found = hashlib.sha256(content).hexdigest()
    if (len(content), found) != (info.nbytes, info.sha256):
        raise ArtefactError(
            f"`{path.name}` is not the file that was built",
            where=path,
            found=f"{len(content)} bytes, sha256 {found[:16]}…",
            expected=f"{info.nbytes} bytes, sha256 {info.sha256[:16]}…",
            hint="copy the engine again, or build it again",
        )
    return content


def check_library(engine: Engine, library: Path) -> None:
    """The library is the one the engine was built with, and it has kernels. Loads nothing.

    Raises:
        ToolchainError: it is another, or one that does nothing.
    """
    check_identity(identify(library), engine.manifest.plugins, library)
    if engine.manifest.plugins.kind == DOES_NOTHING:
        raise ToolchainError(
            "this engine's plugins do nothing: it was built to try the build",
            where=engine.path,
            found=engine.manifest.plugins,
            expected="a library with kernels",
            hint="build the engine again after `make plugins`",
        )


def check_machine(engine: Engine, flavour: str, version: str, architecture: str) -> None:
    """The TensorRT and the GPU of a machine are those the engine was built for.

    Raises:
        ToolchainError: one of them is not.
    """
    m = engine.manifest
    sides = (
        (f"{flavour} {version}", f"{m.flavour} {m.flavour_version}", "TensorRT"),
        (architecture, ", ".join(m.targets), "GPU"),
    )
    if sides[0][0] != sides[0][1] or architecture not in m.targets:
        found, expected, what = sides[0] if sides[0][0] != sides[0][1] else sides[1]
        raise ToolchainError(
            f"the engine was built for another {what}",
            where=engine.path,
            found=found,
            expected=expected,
            hint="build it again for this machine with `ds4export build`",
        )
