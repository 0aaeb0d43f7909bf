"""Writing an artefact: everything under a temporary name, then one rename."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ds4export.artefact.manifest import FileInfo, Manifest
from ds4export.artefact.reader import MANIFEST
from ds4export.errors import ArtefactError

ALIGNMENT = 4096
CHUNK_BYTES = 16 << 20


def refuse_existing(target: Path) -> None:
    """Nothing that is there already is overwritten.

    Raises:
        ArtefactError: there is something at `target`.
    """
    # os.path answers where Path would raise: names too long, folders without permission.
    if os.path.lexists(target):
        raise ArtefactError(
            "there is something at the place of the artefact",
            where=target,
            found="a folder" if target.is_dir() else "a file",
            expected="a path that does not exist yet",
            hint="remove it or choose another path; nothing on disk is overwritten",
        )


@contextmanager
def staged_folder(target: Path) -> Iterator[Path]:
    """A folder under a temporary name beside `target`; renamed to it on success, removed on any failure.

    Raises:
        ArtefactError: something is at `target` already, or the disk refuses.
    """
    refuse_existing(target)
    staging = target.parent / f".{target.name}.partial-{os.getpid()}-{secrets.token_hex(4)}"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        staging.mkdir()
        yield staging
        _sync(staging)
        staging.rename(target)
        _sync(target.parent)
    except OSError as cause:
        raise ArtefactError(
            "the artefact cannot be written",
            where=cause.filename or target,
            found=cause.strerror or str(cause),
            expected="a place with room, and permission to write there",
        ) from None
    finally:
        # After the rename there is nothing under this name.
        shutil.rmtree(staging, ignore_errors=True)


def write_file(path: Path, content: bytes) -> FileInfo:
    """Write and sync one file."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return FileInfo(len(content), hashlib.sha256(content).hexdigest())


class WeightFile:
    """A file of raw tensors, each at a multiple of 4096 bytes, written in chunks; `info` holds from the end on."""

    info: FileInfo

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("wb")
        self._hash = hashlib.sha256()
        self._offset = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._file:
            if error is None:
                self._file.flush()
                os.fsync(self._file.fileno())
        self.info = FileInfo(self._offset, self._hash.hexdigest())

    def append(
        self, parts: Iterable[NDArray[Any]], progress: Callable[[int], None]
    ) -> tuple[int, int]:
        """Write arrays back to back; returns (offset, nbytes) of the whole."""
        self._write(b"\0" * (-self._offset % ALIGNMENT))
        start = self._offset
        for part in parts:
            data = part.reshape(-1).view(np.uint8)
            for at in range(0, len(data), CHUNK_BYTES):
                chunk = data[at : at + CHUNK_BYTES]
                self._write(chunk.tobytes())
                progress(len(chunk))
        return start, self._offset - start

    def _write(self, content: bytes) -> None:
        self._file.write(content)
        self._hash.update(content)
        self._offset += len(content)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """The last file of a folder: without it nothing looks finished."""
    text = json.dumps(manifest.sealed_json(), indent=1, ensure_ascii=False)
    write_file(folder / MANIFEST, text.encode())


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
