"""Recorded vectors: outputs of the released model code on a checkpoint, as two safetensors files in a folder.

`float32.safetensors` holds ids and logits of whole runs (batch 2, `prefill.` then `decode{n}.`), `official.safetensors`
the inputs and outputs of every op of row 0, step by step. Owns reading and the layout of index lists. Refuses a folder
that lacks the file for the artefact's numerics.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ds4export.errors import ParityError, RuntimeInputError
from ds4export.model.weights import array_from_tensor, tensor_from_array

Array = NDArray[Any]
PREFILL = "prefill"


@dataclass(frozen=True)
class Vectors:
    """An open file of recorded tensors."""

    path: Path
    tensors: dict[str, Tensor]

    def steps(self) -> Iterator[str]:
        """`prefill`, then `decode0`, `decode1`, … as far as they go."""
        yield PREFILL
        number = 0
        while f"decode{number}.ids" in self.tensors:
            yield f"decode{number}"
            number += 1

    def get(self, key: str) -> Array | None:
        """A recorded tensor as an array, or None."""
        found = self.tensors.get(key)
        return None if found is None else array_from_tensor(found)

    def ids(self, step: str) -> NDArray[np.int64]:
        """INT64 [B, T] of a step.

        Raises:
            ParityError: the file has no such step.
        """
        found = self.get(f"{step}.ids")
        if found is None or found.ndim != 2:
            raise ParityError(
                "the recorded vectors have no ids",
                where=self.path,
                found=f"no `{step}.ids`" if found is None else f"shape {list(found.shape)}",
                expected=f"`{step}.ids` [B, T]",
            )
        return found.astype(np.int64)


def open_vectors(folder: Path, *, official: bool) -> Vectors:
    """The file for an artefact's numerics.

    Raises:
        RuntimeInputError: the folder has no such file, or it cannot be read.
    """
    path = folder / ("official.safetensors" if official else "float32.safetensors")
    if not path.is_file():
        raise RuntimeInputError(
            "there are no recorded vectors for this artefact",
            where=folder,
            found="no such folder" if not folder.is_dir() else f"no {path.name}",
            expected=f"{path.name}, as in tests/data/tiny-a",
        )
    try:
        with safe_open(str(path), "pt") as file:
            return Vectors(path, {key: file.get_tensor(key) for key in file.keys()})  # noqa: SIM118
    except (SafetensorError, OSError) as cause:
        raise RuntimeInputError(
            "the recorded vectors cannot be read", where=path, found=str(cause)
        ) from None


def write_dump(folder: Path, *, official: bool, arrays: dict[str, Array]) -> Path:
    """Write computed arrays under the keys of the recorded ones.

    Raises:
        RuntimeInputError: the folder cannot be written, or holds a dump already.
    """
    path = folder / ("official.safetensors" if official else "float32.safetensors")
    if path.exists():
        raise RuntimeInputError(
            "there is a dump already", where=path, hint="remove it, or choose another folder"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_file({k: _tensor(v) for k, v in arrays.items()}, str(path))
    except (OSError, SafetensorError) as cause:
        raise RuntimeInputError(
            "the dump cannot be written", where=path, found=str(cause)
        ) from None
    return path


def _tensor(array: Array) -> Tensor:
    return tensor_from_array(np.array(array, order="C")).contiguous()


def entries_of_list(recorded: Array, offset: int) -> NDArray[np.int64]:
    """Index lists of the released code, in which entry j is `offset + j`, as entry numbers; -1 stays."""
    wide = recorded.astype(np.int64)
    return np.where(wide >= 0, wide - offset, -1)


def list_of_entries(chosen: Array, offset: int) -> NDArray[np.int32]:
    """The inverse of `entries_of_list`."""
    return np.where(chosen >= 0, chosen + offset, -1).astype(np.int32)
