"""What a runner needs of a GPU, as a protocol: memory, copies, one stream, graphs.

Owns the names; `cuda_device` is the implementation over libcudart. Addresses, streams and graphs are plain integers:
TensorRT takes them as such. Refuses nothing by itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True)
class DeviceFacts:
    """What was found: `architecture` as TensorRT names it (SM89), `runtime` the version of the CUDA runtime."""

    architecture: str
    total_bytes: int
    runtime: str


class Device(Protocol):
    """One GPU. Work is ordered by its stream; every method raises `Ds4Error` where the runtime refuses."""

    @property
    def facts(self) -> DeviceFacts: ...

    @property
    def stream(self) -> int:
        """The handle that TensorRT enqueues on."""

    def free_bytes(self) -> int:
        """Memory that nobody has taken yet."""

    def allocate(self, num_bytes: int) -> int:
        """The address of new memory, aligned to 256 bytes; what it holds is undefined.

        Raises:
            CapacityError: the device has not so much left.
        """

    def release(self, address: int) -> None:
        """Give memory back that `allocate` has given."""

    def fill(self, address: int, byte: int, num_bytes: int) -> None:
        """Set every byte; in the stream's order."""

    def copy_in(self, address: int, array: Array) -> None:
        """From a contiguous array, which stays as it is until `synchronise`; in the stream's order."""

    def copy_out(self, array: Array, address: int) -> None:
        """Into a contiguous array; in the stream's order, and the bytes are there when this returns."""

    def copy_rows(
        self, to: int, to_pitch: int, source: int, pitch: int, width: int, rows: int
    ) -> None:
        """`rows` times `width` bytes on the device, `pitch` bytes from row to row; in the stream's order."""

    def synchronise(self) -> None:
        """Wait until the stream is empty."""

    def begin_capture(self) -> None:
        """From here on the stream records what is enqueued, instead of running it."""

    def end_capture(self) -> int:
        """What was recorded, as a graph that can be launched.

        Raises:
            ToolchainError: something in the capture cannot be recorded; the stream runs again as before.
        """

    def launch(self, graph: int) -> None:
        """Run a recorded graph; in the stream's order."""

    def release_graph(self, graph: int) -> None:
        """Let a graph go."""

    def close(self) -> None:
        """Let the stream go; a second call does nothing."""
