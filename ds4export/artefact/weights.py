"""Weights of an artefact as views of memory maps: nothing is copied, nothing on disk can change."""

from __future__ import annotations

import mmap
import sys
from math import prod
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
# Without it the kernel would reserve memory for every byte of a private map, hundreds of GB.
# The module names the flag only from Python 3.13 on.
_NO_RESERVE = 0x4000 if sys.platform == "linux" else 0


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
        expected = prod(shape) * dtype.itemsize
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
            self._maps[path] = _mapped(path)
        return self._maps[path]


def _mapped(path: Path) -> NDArray[np.uint8]:
    """Private pages, writable for libraries that refuse read-only memory; the file stays as it is."""
    flags, access = mmap.MAP_PRIVATE | _NO_RESERVE, mmap.PROT_READ | mmap.PROT_WRITE
    try:
        with path.open("rb") as file:
            return np.frombuffer(mmap.mmap(file.fileno(), 0, flags=flags, prot=access), np.uint8)
    except (OSError, ValueError) as cause:
        raise ArtefactError(
            f"the weights in `{path.name}` cannot be mapped", where=path, found=str(cause)
        ) from None
