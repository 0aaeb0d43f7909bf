"""Artefacts of the recorded checkpoints, exported once per run, and pools over them.

An exported folder is shared by all tests: whoever damages one takes a copy first. Files of a copy are replaced, never
written in place, because it shares them with the original.
"""

from __future__ import annotations

import atexit
import io
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from ds4export.artefact import open_artefact_folder
from ds4export.artefact.manifest import FileInfo
from ds4export.export import ExportOptions, export_checkpoint
from ds4export.report import Reporter
from ds4export.runtime.onnx_runner import OnnxRunner
from tests.kit.checkpoints import recorded, replace_file

NANO = Path(__file__).parents[2] / "ds4export/data/nano"
MANIFEST = "manifest.json"
SLOTS, CONTEXT = 4, 512


def quiet() -> Reporter:
    """A reporter whose lines nobody reads."""
    return Reporter(num_stages=5, stream=io.StringIO())


@cache
def _root() -> Path:
    folder = tempfile.mkdtemp(prefix="ds4export-tests-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def checkpoint_of(name: str) -> Path:
    """The folder of a recorded checkpoint, or of nano."""
    return NANO if name == "nano" else recorded(name)


def exported(
    name: str,
    *,
    official: bool = False,
    layers: tuple[int, int] | None = None,
    self_contained: bool = False,
) -> Path:
    """The artefact of a recorded checkpoint, or of nano. Shared: take a copy to change it."""
    return _exported(name, official, layers, self_contained)


@cache
def _exported(
    name: str, official: bool, layers: tuple[int, int] | None, self_contained: bool
) -> Path:
    chosen = "all" if layers is None else f"{layers[0]}-{layers[1]}"
    target = _root() / f"{name}-{'official' if official else 'float32'}-{chosen}-{self_contained}"
    options = ExportOptions(
        official=official,
        layers=None if layers is None else range(*layers),
        self_contained=self_contained,
    )
    export_checkpoint(checkpoint_of(name), target, options, quiet())
    return target


def open_runner(folder: Path, *, slots: int = SLOTS, context: int = CONTEXT) -> OnnxRunner:
    """A runner of its own over a pool of NaN, on one thread."""
    return OnnxRunner(
        open_artefact_folder(folder), num_slots=slots, max_context=context, threads=1, fill=np.nan
    )


@cache
def shared_runner(name: str) -> OnnxRunner:
    """The float32 runner of a whole model; its slots hold whatever the tests before have left there."""
    return open_runner(exported(name))


def copy_artefact(source: Path, target: Path) -> Path:
    """A copy that shares its files until they are replaced."""
    target.mkdir()
    for file in source.iterdir():
        os.link(file, target / file.name)
    return target


def read_manifest(folder: Path) -> dict[str, Any]:
    """The parsed manifest."""
    manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_bytes())
    return manifest


def edit_manifest(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Change the manifest as a person with an editor would: its own hash stays what it was."""
    manifest = read_manifest(folder)
    edit(manifest)
    replace_file(folder / MANIFEST, json.dumps(manifest).encode())


def reseal(folder: Path) -> None:
    """Make an edited manifest pass for a written one, so that the checks behind its hash are reached."""
    manifest = read_manifest(folder)
    replace_file(folder / MANIFEST, json.dumps({**manifest, "hash": seal_of(manifest)}).encode())


def seal_of(manifest: dict[str, Any]) -> str:
    """sha256 of a manifest without its own hash, its date and the paths of its checkpoint."""
    rest = {name: value for name, value in manifest.items() if name not in ("hash", "created")}
    link = rest.get("checkpoint")
    if isinstance(link, dict):
        paths = ("relative_path", "absolute_path")
        rest["checkpoint"] = {name: value for name, value in link.items() if name not in paths}
    return sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def replace_in_artefact(folder: Path, name: str, content: bytes) -> None:
    """New content of a file, its hash in the manifest and the manifest's own made to fit."""
    replace_file(folder / name, content)
    info = FileInfo(len(content), sha256(content).hexdigest())
    edit_manifest(folder, lambda manifest: manifest["files"].update({name: asdict(info)}))
    reseal(folder)
