"""Weights of an artefact as views of memory maps: nothing is copied, nothing on disk can change."""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from ds4export.artefact.manifest import TensorInfo, WeightSource
from ds4export.errors import ArtefactError

NUMPY = {
    "FLOAT": np.dtype(np.float32),
    "BFLOAT16": np.dtype(ml_dtypes.bfloat16),
    "INT64": np.dtype(np.int64),
    "INT8": np.dtype(np.int8),
}


class MappedFiles:
    """Private maps of whole files, made on first use."""

    def __init__(self) -> None:
        self._maps: dict[Path, NDArray[np.uint8]] = {}

    def array(self, path: Path, source: WeightSource, info: TensorInfo) -> NDArray[Any]:
        """The view of one weight.

        Raises:
            ArtefactError: the range lies outside the file or does not hold a tensor of that shape.
        """
        dtype = NUMPY[info.dtype]
        shape = [d for d in info.dims if isinstance(d, int)]
        expected = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        data = self._map(path)
        if source.nbytes != expected or source.offset + source.nbytes > len(data):
            raise ArtefactError(
                f"weight `{info.name}` does not lie where the manifest says",
                where=path,
                found=f"{source.nbytes} bytes at {source.offset} of a file of {len(data)} bytes",
                expected=f"{expected} bytes for {info.dtype} {shape}",
                hint="export the checkpoint again",
            )
        return data[source.offset : source.offset + source.nbytes].view(dtype).reshape(shape)

    def _map(self, path: Path) -> NDArray[np.uint8]:
        if path not in self._maps:
            with path.open("rb") as file:
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
            self._maps[path] = np.frombuffer(mapped, np.uint8)
        return self._maps[path]
