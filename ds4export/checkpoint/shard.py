"""One safetensors file: its header, read and checked without touching a tensor byte.

Owns the file format: 8 bytes of header length, a JSON header, then the tensors back to back.
Refuses whatever the format forbids, so that every offset handed on lies inside the file.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, TypeGuard

from ds4export.config.strict_json import parse_json, regular_file_size, short
from ds4export.errors import CheckpointError

LENGTH_BYTES = 8
MAX_HEADER_BYTES = 100_000_000
MAX_RANK = 16
MAX_COUNT = (1 << 63) - 1
METADATA = "__metadata__"

DTYPE_BITS = {
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8,
    "U16": 16, "I16": 16, "F16": 16, "BF16": 16,
    "U32": 32, "I32": 32, "F32": 32,
    "U64": 64, "I64": 64, "F64": 64, "C64": 64,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class TensorRef:
    """Where a tensor lies: `nbytes` bytes from `offset`, counted from the start of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    shard: str
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class ShardInfo:
    """Identity of a shard: changed bytes in the header or another size mean another file."""

    file: str
    nbytes: int
    header_sha256: str


@dataclass(frozen=True, slots=True)
class Shard:
    """A checked header."""

    info: ShardInfo
    tensors: dict[str, TensorRef]


def read_shard(path: Path) -> Shard:
    """Read and check the header of a shard.

    Raises:
        CheckpointError: not a regular file, truncated, or a header the format forbids.
    """
    nbytes = regular_file_size(path, CheckpointError)
    header = _read_header_bytes(path, nbytes)
    entries = parse_json(header, f"header of {path}", CheckpointError)
    if not isinstance(entries, dict):
        raise _malformed(path, "the header is not an object", short(entries), "{name: entry, …}")
    data_start = LENGTH_BYTES + len(header)
    tensors = {
        name: _tensor_ref(path, name, entry, data_start)
        for name, entry in entries.items()
        if name != METADATA
    }
    _check_layout(path, list(tensors.values()), data_start, nbytes)
    info = ShardInfo(path.name, nbytes, hashlib.sha256(header).hexdigest())
    return Shard(info, tensors)


def _read_header_bytes(path: Path, nbytes: int) -> bytes:
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(LENGTH_BYTES), "little")
            if length > MAX_HEADER_BYTES:
                raise _malformed(
                    path,
                    "the header is too long",
                    f"{length} bytes",
                    f"at most {MAX_HEADER_BYTES} bytes",
                )
            if nbytes < LENGTH_BYTES + length:
                raise _truncated(
                    path, nbytes, f"{LENGTH_BYTES + length} bytes for its header alone"
                )
            return file.read(length)
    except OSError as cause:
        raise CheckpointError(
            f"shard `{path.name}` cannot be read", where=path, found=cause.strerror or str(cause)
        ) from None


def _tensor_ref(path: Path, name: str, entry: Any, data_start: int) -> TensorRef:
    fields = entry if isinstance(entry, dict) else {}
    dtype, shape, span = (fields.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not (isinstance(dtype, str) and _is_counts(shape) and _is_counts(span) and len(span) == 2):
        raise _malformed(
            path,
            f"the entry of `{name}` does not describe a tensor",
            short(entry),
            "{'dtype': …, 'shape': […], 'data_offsets': [begin, end]}",
        )
    if dtype not in DTYPE_BITS:
        raise _malformed(path, f"`{name}` has an unknown dtype", dtype, ", ".join(DTYPE_BITS))
    begin, end = span
    bits = prod(shape) * DTYPE_BITS[dtype]
    if 8 * (end - begin) != bits:
        raise _malformed(
            path,
            f"`{name}` has a byte range of the wrong size",
            f"bytes {short(begin)} to {short(end)}",
            f"{short(-(-bits // 8))} bytes, for {dtype} {short(shape)}",
        )
    return TensorRef(name, dtype, tuple(shape), path.name, data_start + begin, end - begin)


def _is_counts(value: Any) -> TypeGuard[list[int]]:
    if not isinstance(value, list) or len(value) > MAX_RANK:
        return False
    return all(type(item) is int and 0 <= item <= MAX_COUNT for item in value)


def _check_layout(path: Path, tensors: list[TensorRef], data_start: int, nbytes: int) -> None:
    """Tensors must cover the data section exactly: no overlap, no gap, no rest."""
    end = data_start
    for ref in sorted(tensors, key=lambda ref: (ref.offset, ref.nbytes)):
        if ref.offset != end:
            problem = "overlaps the tensor before it" if ref.offset < end else "follows a gap"
            raise _malformed(
                path, f"`{ref.name}` {problem}", f"begin at byte {ref.offset}", f"at byte {end}"
            )
        end += ref.nbytes
    if end > nbytes:
        raise _truncated(path, nbytes, f"{end} bytes, from its header")
    if end < nbytes:
        raise _malformed(
            path, "the file goes on after its last tensor", f"{nbytes} bytes", f"{end} bytes"
        )


def _truncated(path: Path, nbytes: int, expected: str) -> CheckpointError:
    return CheckpointError(
        f"shard `{path.name}` is truncated",
        where=path,
        found=f"{nbytes} bytes",
        expected=expected,
        hint="the download is incomplete: fetch this shard again",
    )


def _malformed(path: Path, problem: str, found: str, expected: str) -> CheckpointError:
    return CheckpointError(
        f"shard `{path.name}` is malformed: {problem}",
        where=path,
        found=found,
        expected=expected,
        hint="fetch this shard again",
    )
