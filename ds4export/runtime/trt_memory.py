"""The four blocks of a `BindingPlan` on a device, filled: weights uploaded, state at its start.

Owns allocation and release. Refuses, before the first allocation, a device on which the blocks do not fit.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ds4export.artefact import Artefact
from ds4export.artefact.manifest import TensorInfo
from ds4export.errors import Ds4Error
from ds4export.runtime.device import Array, Device
from ds4export.runtime.device_memory import MemoryPlan, check_memory
from ds4export.runtime.trt_binding import ACTIVATIONS, IO, STATES, WEIGHTS, BindingPlan

_NAN_BYTE = 0xFF  # all ones are NaN in float32, in bfloat16 and in the scales of packed rows


class DeviceMemory:
    """Addresses of regions. Bytes of `io` and `activations` are undefined until a step writes them."""

    def __init__(
        self, device: Device, plan: BindingPlan, memory: MemoryPlan, where: object
    ) -> None:
        check_memory(memory, device.free_bytes(), device.facts.total_bytes, where)
        self.plan, self.memory = plan, memory
        self._device = device
        self._blocks: dict[str, int] = {}
        sizes = ((WEIGHTS, memory.weights), (STATES, memory.state), (IO, memory.io))
        try:
            for block, num_bytes in (*sizes, (ACTIVATIONS, memory.activations)):
                self._blocks[block] = device.allocate(num_bytes)
        except Ds4Error:
            self.close()
            raise

    def address(self, region: str) -> int:
        """Where a region begins."""
        found = self.plan.regions[region]
        return self._blocks[found.block] + found.offset

    @property
    def activations(self) -> int:
        """Where the activations begin."""
        return self._blocks[ACTIVATIONS]

    def addresses(self, graph: str) -> dict[str, int]:
        """Of every input and output of a graph."""
        return {name: self.address(region) for name, region in self.plan.bound[graph].items()}

    def upload(self, artefact: Artefact, weights: Mapping[str, TensorInfo]) -> None:
        """Copy every weight from the memory map; the map's pages are read once."""
        for name, info in weights.items():
            self._device.copy_in(self.address(name), np.ascontiguousarray(artefact.weight(info)))
        self._device.synchronise()

    def fill_state(self, value: float) -> None:
        """Zeros, or NaN everywhere: what a slot holds before its first token.

        Tests and parity use NaN to see that nothing stale is read.
        """
        assert value == 0.0 or np.isnan(value), "a device is filled byte by byte"
        byte = 0 if value == 0.0 else _NAN_BYTE
        self._device.fill(self._blocks[STATES], byte, self.memory.state)
        self._device.synchronise()

    def read(self, region: str, like: Array) -> Array:
        """Fill a contiguous array from the beginning of a region."""
        assert like.nbytes <= self.plan.regions[region].num_bytes, f"`{region}` is smaller"
        self._device.copy_out(like, self.address(region))
        return like

    def write(self, region: str, array: Array, offset: int = 0) -> None:
        """Copy an array to `offset` bytes behind the beginning of a region; it must stay until `synchronise`."""
        end = offset + array.nbytes
        assert end <= self.plan.regions[region].num_bytes, f"`{region}` is smaller"
        self._device.copy_in(self.address(region) + offset, array)

    def close(self) -> None:
        """Give all blocks back; a second call does nothing."""
        while self._blocks:
            self._device.release(self._blocks.popitem()[1])
