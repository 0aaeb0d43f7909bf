"""The streams of a step, where they lie on the device, and who may still read them.

A plan writes its streams into one region; a step in several pieces gathers them in a block of its own. Owns that block
and the number of the step. Refuses streams that a later step has overwritten, and those of another step.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np

from ds4export.artefact.manifest import TensorInfo
from ds4export.artefact.weights import NUMPY
from ds4export.errors import RuntimeInputError
from ds4export.runtime.device import Array, Device
from ds4export.runtime.runner import StepInputs
from ds4export.runtime.step_cut import Piece


@dataclass(frozen=True)
class DeviceStreams:
    """Streams [B, T, N, D] of step `number` at an address of the device."""

    store: StreamStore
    number: int
    address: int
    shape: tuple[int, ...]
    dtype: str

    @property
    def token_bytes(self) -> int:
        """Bytes of one token's streams."""
        return prod(self.shape[2:]) * NUMPY[self.dtype].itemsize

    def at(self, piece: Piece) -> int:
        """The address of a piece's first token."""
        token = piece.rows.start * self.shape[1] + piece.tokens.start
        return self.address + token * self.token_bytes

    def check_alive(self) -> None:
        """Refuse to be read once a later step has written.

        Raises:
            RuntimeInputError: the step is not the last one.
        """
        if self.store.number != self.number:
            raise RuntimeInputError(
                "the streams have been overwritten by a later step",
                where="`streams`",
                found=f"those of step {self.number}; the last one was {self.store.number}",
                expected="the streams of the last step",
                hint="read or use them before the next step",
            )


class StreamStore:
    """Where the streams of one graph's steps are kept; `region` is where the plan writes, `info` what."""

    def __init__(self, device: Device, region: int, info: TensorInfo) -> None:
        self.number = 0
        self._device, self._region, self._info = device, region, info
        self._block = 0

    def begin(self, batch: int, tokens: int, num_pieces: int) -> DeviceStreams:
        """The place of a new step's streams; those of the step before are gone."""
        self.close()
        self.number += 1
        shape = (batch, tokens, *(d for d in self._info.dims[2:] if isinstance(d, int)))
        address = self._region
        if num_pieces > 1:
            num_bytes = prod(shape) * NUMPY[self._info.dtype].itemsize
            address = self._block = self._device.allocate(num_bytes)
        return DeviceStreams(self, self.number, address, shape, self._info.dtype)

    def keep(self, piece: Piece, whole: DeviceStreams) -> None:
        """Copy what the plan has just written to its place in the whole."""
        if whole.address == self._region:
            return
        width = (piece.tokens.stop - piece.tokens.start) * whole.token_bytes
        rows, pitch = piece.rows.stop - piece.rows.start, whole.shape[1] * whole.token_bytes
        self._device.copy_rows(whole.at(piece), pitch, self._region, width, width, rows)

    def close(self) -> None:
        """Give the block back, if there is one."""
        if self._block:
            self._device.release(self._block)
            self._block = 0


def copy_streams(device: Device, streams: DeviceStreams, piece: Piece, to: int) -> None:
    """The part of the streams that a piece reads; nothing where it lies in place already."""
    width = (piece.tokens.stop - piece.tokens.start) * streams.token_bytes
    rows, pitch = piece.rows.stop - piece.rows.start, streams.shape[1] * streams.token_bytes
    if streams.at(piece) != to or width != pitch:
        device.copy_rows(to, width, streams.at(piece), pitch, width, rows)


def check_streams(info: TensorInfo, streams: Array | DeviceStreams, inputs: StepInputs) -> None:
    """Refuse streams that are not of this step.

    Raises:
        RuntimeInputError: of another shape or dtype, or overwritten.
    """
    if isinstance(streams, DeviceStreams):
        streams.check_alive()
        found = f"{streams.dtype} {list(streams.shape)}"
    else:
        names = {dtype: name for name, dtype in NUMPY.items()}
        found = f"{names.get(streams.dtype, streams.dtype)} {list(streams.shape)}"
    expected = f"{info.dtype} {[*inputs.ids.shape, *info.dims[2:]]}"
    if found != expected:
        raise RuntimeInputError(
            "the streams are not of this step",
            where=f"`{info.name}`",
            found=found,
            expected=expected,
        )


def read_streams(device: Device, streams: DeviceStreams) -> Array:
    """A copy, bfloat16 as ml_dtypes.bfloat16.

    Raises:
        RuntimeInputError: a later step has overwritten them.
    """
    streams.check_alive()
    out = np.empty(streams.shape, NUMPY[streams.dtype])
    device.copy_out(out, streams.address)
    return out
