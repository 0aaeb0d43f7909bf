"""Checkpoints for tests: the recorded ones, copies to damage, and rewrites in other dialects.

Reads and writes safetensors by hand, so that the reader under test is not its own witness.
Files are replaced, never written in place: copies share their unchanged files with the originals.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

DATA = Path(__file__).parent.parent / "data"
INDEX = "model.safetensors.index.json"
SHARDS = tuple(f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3))


@dataclass(frozen=True)
class Entry:
    """One tensor as its file has it."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes


Tensors = dict[str, Entry]


def recorded(name: str) -> Path:
    """The folder of a recorded checkpoint: tiny-a, tiny-c or tiny-base."""
    return DATA / name / "checkpoint"


def copy_of(name: str, target: Path) -> Path:
    """A copy of a recorded checkpoint that shares its files until they are replaced."""
    target.mkdir()
    for file in recorded(name).iterdir():
        try:
            os.link(file, target / file.name)
        except OSError:  # another file system
            shutil.copyfile(file, target / file.name)
    return target


def replace_file(path: Path, data: bytes) -> None:
    """New content under an old name; the file it was linked to stays as it is."""
    path.unlink(missing_ok=True)
    path.write_bytes(data)


def edit_json(path: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Load, let `edit` change it in place, store."""
    value = json.loads(path.read_bytes())
    edit(value)
    replace_file(path, json.dumps(value).encode())


def split_shard(data: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and data section of a shard."""
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def join_shard(header: dict[str, Any] | bytes, data: bytes) -> bytes:
    """The inverse of `split_shard`; a header given as bytes is taken as it is."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def edit_header(path: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Change a shard's header and leave its data section."""
    header, data = split_shard(path.read_bytes())
    edit(header)
    replace_file(path, join_shard(header, data))


def read_tensors(folder: Path) -> Tensors:
    """Every tensor of every shard, by its name on disk."""
    tensors: Tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        header, data = split_shard(path.read_bytes())
        for name, entry in header.items():
            begin, end = entry["data_offsets"]
            tensors[name] = Entry(entry["dtype"], tuple(entry["shape"]), data[begin:end])
    return tensors


def write_checkpoint(folder: Path, tensors: Tensors, config: dict[str, Any]) -> Path:
    """A checkpoint in the single-file form, tensors in the order given."""
    folder.mkdir(exist_ok=True)
    header, begin = {}, 0
    for name, entry in tensors.items():
        end = begin + len(entry.data)
        offsets = [begin, end]
        header[name] = {"dtype": entry.dtype, "shape": entry.shape, "data_offsets": offsets}
        begin = end
    data = b"".join(entry.data for entry in tensors.values())
    replace_file(folder / "model.safetensors", join_shard(header, data))
    replace_file(folder / "config.json", json.dumps(config).encode())
    return folder


def read_config(name: str) -> dict[str, Any]:
    """The parsed config.json of a recorded checkpoint."""
    config: dict[str, Any] = json.loads((recorded(name) / "config.json").read_bytes())
    return config


def filled(dtype: str, *shape: int) -> Entry:
    """A tensor of zero bytes."""
    size = {"F32": 4, "BF16": 2, "F16": 2, "I64": 8}.get(dtype, 1)
    return Entry(dtype, shape, bytes(math.prod(shape) * size))


def reshaped(entry: Entry, *shape: int) -> Entry:
    """The same bytes in another shape."""
    return replace(entry, shape=shape)
