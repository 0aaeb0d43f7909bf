"""`open_checkpoint`: a folder of weights in, lazy tensors under official names out.

All checks happen at the door, on headers alone. Tensor bytes are reached through private memory
maps: nothing is copied, and nothing can reach the disk.
"""

from __future__ import annotations

import mmap
import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Self

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from ds4export.checkpoint.dialects import official_refs
from ds4export.checkpoint.index import read_shards
from ds4export.checkpoint.shard import Shard, ShardInfo, TensorRef
from ds4export.checkpoint.verify import UnusedTensor, verify
from ds4export.config import ModelConfig, load_config
from ds4export.errors import CheckpointError

# Packed and 8-bit floating formats travel as int8: no runtime takes them all in their own type.
NUMPY_DTYPES: dict[str, np.dtype[Any]] = {
    "F32": np.dtype(np.float32),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(np.int8),
    "F8_E8M0": np.dtype(np.int8),
    "I8": np.dtype(np.int8),
    "I64": np.dtype(np.int64),
}
# Without it the kernel would reserve memory for every byte of a private map, hundreds of GB.
# The module names the flag only from Python 3.13 on.
_NO_RESERVE = 0x4000 if sys.platform == "linux" else 0


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a model, by official name, as ranges of files.

    `has_mtp` says whether a complete MTP block of the released kind is there; `scale_dtype` is
    that of all FP8 tile scales. Arrays stay valid after `close`.
    """

    config: ModelConfig
    path: Path
    tensors: Mapping[str, TensorRef]
    unused: tuple[UnusedTensor, ...]
    has_mtp: bool
    shards: tuple[ShardInfo, ...]
    scale_dtype: str
    _maps: dict[str, mmap.mmap] = field(default_factory=dict, repr=False, compare=False)

    def array(self, name: str) -> NDArray[Any]:
        """A view of one tensor; F8 and packed FP4 as int8, BF16 as ml_dtypes.bfloat16."""
        ref = self.tensors[name]
        data = self.raw(ref.shard, ref.offset, ref.nbytes)
        return data.view(NUMPY_DTYPES[ref.dtype]).reshape(ref.shape)

    def raw(self, shard_file: str, offset: int, nbytes: int) -> NDArray[np.uint8]:
        """A uint8 view of any byte range of a shard, such as the experts of a whole layer."""
        mapped = self._map(shard_file)
        assert 0 <= offset <= offset + nbytes <= len(mapped), (
            f"bytes {offset}..{offset + nbytes} are outside {shard_file} of {len(mapped)} bytes"
        )
        return np.frombuffer(mapped, np.uint8, nbytes, offset)

    def close(self) -> None:
        """Drop the maps; each is released with the last array that looks at it."""
        self._maps.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _map(self, shard_file: str) -> mmap.mmap:
        if shard_file not in self._maps:
            sizes = {info.file: info.nbytes for info in self.shards}
            self._maps[shard_file] = _map_shard(self.path / shard_file, sizes[shard_file])
        return self._maps[shard_file]


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a checkpoint folder and check all of it but the values.

    Raises:
        ConfigError, UnsupportedModelError: from config.json.
        CheckpointError: weights missing, damaged, misplaced, or not those of the config.
    """
    # os.path answers where Path would raise: names too long, folders without permission.
    if not os.path.isdir(path):
        raise CheckpointError(
            "the checkpoint is not a folder",
            where=path,
            found="a file" if os.path.exists(path) else "no such folder",
            expected="the folder that holds config.json and the shards",
        )
    config = load_config(path)
    shards = read_shards(path)
    checked = verify(config, _official_tensors(shards, config))
    return Checkpoint(
        config=checked.config,
        path=path,
        tensors=MappingProxyType(checked.tensors),
        unused=checked.unused,
        has_mtp=checked.has_mtp,
        shards=tuple(shard.info for shard in shards),
        scale_dtype=checked.scale_dtype,
    )


def _official_tensors(shards: Iterable[Shard], config: ModelConfig) -> dict[str, TensorRef]:
    found: dict[str, TensorRef] = {}
    sources: dict[str, str] = {}
    for shard in shards:
        for stored in shard.tensors.values():
            for ref in official_refs(stored, config):
                if ref.name in found:
                    raise CheckpointError(
                        f"`{ref.name}` is there twice, under two names",
                        where=f"shards {found[ref.name].shard} and {stored.shard}",
                        found=f"`{sources[ref.name]}` and `{stored.name}`",
                        expected="one of them",
                    )
                found[ref.name], sources[ref.name] = ref, stored.name
    return found


def _map_shard(path: Path, nbytes: int) -> mmap.mmap:
    try:
        with path.open("rb") as file:
            mapped = mmap.mmap(
                file.fileno(),
                0,
                flags=mmap.MAP_PRIVATE | _NO_RESERVE,
                prot=mmap.PROT_READ | mmap.PROT_WRITE,
            )
    except (OSError, ValueError) as cause:
        raise CheckpointError(
            f"shard `{path.name}` cannot be mapped", where=path, found=str(cause)
        ) from None
    if len(mapped) != nbytes:
        raise CheckpointError(
            f"shard `{path.name}` changed while the checkpoint was open",
            where=path,
            found=f"{len(mapped)} bytes",
            expected=f"{nbytes} bytes",
        )
    return mapped
