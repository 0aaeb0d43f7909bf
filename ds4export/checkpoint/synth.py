"""`write_synthetic`: random weights in the official format, one shard per layer.

Owns the writing of safetensors files. Memory does not grow with the model; a shard appears under
its name only when it is complete and on disk, the index last.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any

from ds4export.checkpoint.index import INDEX_FILE
from ds4export.checkpoint.names import (
    DTYPE_BYTES,
    TILE_SCALE_DTYPES,
    TensorSpec,
    expected_tensors,
    prefixes,
)
from ds4export.checkpoint.random_weights import (
    code_chunks,
    expert_table_chunks,
    float_chunks,
    scale_chunks,
)
from ds4export.checkpoint.shard import LENGTH_BYTES
from ds4export.config import ModelConfig
from ds4export.errors import CheckpointError

# Bytes written and bytes in all.
Progress = Callable[[int, int], None]

# safetensors sorts by this order, then by name: alignment falls, so no tensor needs padding.
_DTYPE_ORDER = ("I64", "F32", "BF16", "F8_E8M0", "F8_E4M3", "I8")


def write_synthetic(
    path: Path,
    config: ModelConfig,
    *,
    seed: int,
    scale_dtype: str = TILE_SCALE_DTYPES[0],
    progress: Progress | None = None,
) -> None:
    """Write a checkpoint of random weights; equal arguments give equal bytes.

    Raises:
        CheckpointError: the folder is not empty, the disk is too small or cannot be written.
        ConfigError: the config does not say the experts' format.

    Example:
        >>> write_synthetic(Path("/tmp/tiny"), PRESETS["tiny"], seed=0)  # doctest: +SKIP
    """
    shards = _shards(expected_tensors(config), config)
    total = sum(_nbytes(spec, scale_dtype) for specs in shards.values() for spec in specs)
    _prepare_folder(path, total)
    done = 0
    try:
        for file, specs in shards.items():
            ordered = sorted(specs, key=lambda spec: _order(spec, scale_dtype))
            pieces = _shard_bytes(ordered, config, scale_dtype, seed)
            for nbytes in _write_file(path / file, pieces):
                done += nbytes
                if progress:
                    progress(min(done, total), total)
        _write_json(path / "config.json", config.to_json())
        _write_json(path / INDEX_FILE, _index(shards, total))
    except OSError as cause:
        raise CheckpointError(
            "the checkpoint cannot be written", where=path, found=cause.strerror or str(cause)
        ) from None


def _prepare_folder(path: Path, total: int) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
        occupied = next(path.iterdir(), None)
        free = shutil.disk_usage(path).free
    except OSError as cause:
        raise CheckpointError(
            "the folder cannot be created", where=path, found=cause.strerror or str(cause)
        ) from None
    if occupied is not None:
        raise CheckpointError(
            "the folder is not empty",
            where=path,
            found=f"`{occupied.name}`",
            expected="a new or an empty folder",
            hint="name another folder; nothing is overwritten",
        )
    if free < total:
        raise CheckpointError(
            "the disk is too small",
            where=path,
            found=f"{free} bytes free",
            expected=f"{total} bytes",
        )


def _shards(expected: Mapping[str, TensorSpec], config: ModelConfig) -> dict[str, list[TensorSpec]]:
    """File name to tensors: the embedding, each layer and MTP block, the head; as released."""
    groups: dict[str, list[TensorSpec]] = {"embed.": []}
    groups |= {prefix: [] for prefix in prefixes(config)} | {"": []}
    for name, spec in expected.items():
        head, _, rest = name.partition(".")
        prefix = f"{head}.{rest.partition('.')[0]}." if head in ("layers", "mtp") else f"{head}."
        groups[prefix if prefix in groups else ""].append(spec)
    width = len(groups)
    return {
        f"model-{number:05}-of-{width:05}.safetensors": specs
        for number, specs in enumerate(groups.values(), 1)
    }


def _order(spec: TensorSpec, scale_dtype: str) -> tuple[int, str]:
    return _DTYPE_ORDER.index(_dtype(spec, scale_dtype)), spec.name


def _dtype(spec: TensorSpec, scale_dtype: str) -> str:
    return scale_dtype if spec.dtypes == TILE_SCALE_DTYPES else spec.dtypes[0]


def _nbytes(spec: TensorSpec, scale_dtype: str) -> int:
    return prod(spec.shape) * DTYPE_BYTES[_dtype(spec, scale_dtype)]


def _shard_bytes(
    specs: list[TensorSpec], config: ModelConfig, scale_dtype: str, seed: int
) -> Iterator[bytes]:
    yield _header(specs, scale_dtype)
    by_name = {spec.name: spec for spec in specs}
    for spec in specs:
        if spec.name.endswith(".tid2eid"):
            chunks = expert_table_chunks(spec, config.n_routed_experts, seed)
        elif spec.name.endswith(".scale"):
            linear = by_name[spec.name.removesuffix("scale") + "weight"]
            chunks = scale_chunks(spec, linear, _dtype(spec, scale_dtype), seed)
        elif spec.dtypes[0] in ("F8_E4M3", "I8"):
            chunks = code_chunks(spec, seed)
        else:
            chunks = float_chunks(spec, seed)
        yield from (chunk.tobytes() for chunk in chunks)


def _header(specs: list[TensorSpec], scale_dtype: str) -> bytes:
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    begin = 0
    for spec in specs:
        end = begin + _nbytes(spec, scale_dtype)
        entries[spec.name] = {
            "dtype": _dtype(spec, scale_dtype),
            "shape": list(spec.shape),
            "data_offsets": [begin, end],
        }
        begin = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    # Padding keeps the first tensor aligned to eight bytes in the file.
    text += b" " * (-len(text) % LENGTH_BYTES)
    return len(text).to_bytes(LENGTH_BYTES, "little") + text


def _write_file(path: Path, pieces: Iterable[bytes]) -> Iterator[int]:
    """Write under another name, flush to the disk, then rename; yields the size of each piece."""
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("xb") as file:
            for piece in pieces:
                file.write(piece)
                yield len(piece)
            file.flush()
            os.fsync(file.fileno())
        partial.rename(path)
    finally:
        partial.unlink(missing_ok=True)


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    text = json.dumps(value, indent=1) + "\n"
    for _ in _write_file(path, [text.encode()]):
        pass


def _index(shards: Mapping[str, list[TensorSpec]], total: int) -> dict[str, Any]:
    weight_map = {spec.name: file for file, specs in shards.items() for spec in specs}
    return {"metadata": {"total_size": total}, "weight_map": weight_map}
