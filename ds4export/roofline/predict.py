"""The bound of an op on a GPU, the least time that its kernels as written can take, and what keeps them from the bound.

    bound      max(compulsory bytes / bandwidth, operations / peak of the fastest exact unit), per op, added up
    predicted  per kernel: a launch + max(memory, L2, arithmetic), each with its causes below
    share      bound / predicted: an upper limit, as latencies inside a kernel are not counted

Nothing here was run on a GPU.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import ceil

from ds4export.config import ModelConfig
from ds4export.roofline.devices import DRAM_SHARE, IN_FLIGHT, LATENCY_S, LAUNCH_S, Device
from ds4export.roofline.kernel import Kernel, Unit
from ds4export.roofline.layouts import Layout
from ds4export.roofline.step import OpCall, state_bytes, weight_bytes

# What can keep a kernel from the bound; a prediction can be asked for without any of them.
CAUSES = {
    "launches": "2 µs for every kernel",
    "few blocks": "too few bytes in flight (32 KB a block, 0.5 µs), or multiprocessors without a block",
    "bf16 mma.sync": "tensor products through mma.sync, not at the published peak, and in bf16, not in the fastest"
    " exact format; tiles of many tokens multiply e4m3 where mma.sync does",
    "padding": "tiles multiply absent tokens, heads and rows",
    "read again": "bytes moved besides the compulsory ones, in memory or through the L2 cache",
    "DRAM efficiency": "92 % of the published bandwidth is what long copies reach",
}


@dataclass(frozen=True)
class Times:
    """Seconds of one or more ops."""

    bound: float
    predicted: float
    memory_bound: float  # the part of `bound` of ops whose bound is memory
    limit: str  # the cause without which the prediction falls most

    @property
    def share(self) -> float:
        """Of the bound, at most."""
        return self.bound / self.predicted


def peak(unit: Unit, device: Device) -> float:
    """Published operations a second."""
    return {Unit.VECTOR: device.fp32, Unit.BF16: device.bf16, Unit.FP8: device.fp8}[unit]


def sides(kernels: Iterable[Kernel], device: Device) -> tuple[float, float]:
    """(seconds of the compulsory bytes, seconds of the operations) of one call."""
    kernels = tuple(kernels)
    memory = sum(k.compulsory for k in kernels) / device.bandwidth
    return memory, sum(k.flops / peak(k.unit, device) for k in kernels)


def kernel_time(k: Kernel, device: Device, without: str = "") -> float:
    """Least seconds of one launch, with every cause but `without`."""
    again = without != "read again"
    dram = device.bandwidth * (1 if without == "DRAM efficiency" else DRAM_SHARE)
    from_memory = sum(n for n, size in k.again if again and size > device.l2)
    busy, full = _fill(k.blocks, device) if without != "few blocks" else (1.0, 1.0)
    flops = k.flops if without == "padding" else max(k.flops, k.executed)
    top = peak(k.unit, device)
    if k.unit != Unit.VECTOR and without != "bf16 mma.sync":
        top = (device.fp8 if k.codes and device.e4m3 else device.bf16) * device.mma_sync
    memory = (k.compulsory + from_memory) / dram / busy
    cache = k.loaded / device.l2_bandwidth / full if again else 0
    launch = 0 if without == "launches" else LAUNCH_S
    return launch + max(memory, cache, flops / top / full)


def _fill(blocks: float, device: Device) -> tuple[float, float]:
    """Shares of (bandwidth, multiprocessors) that a grid can use: by its bytes in flight, and by its last wave."""
    blocks = max(blocks, 1)
    waves = blocks / device.multiprocessors
    return min(1.0, blocks * IN_FLIGHT / LATENCY_S / device.bandwidth), waves / ceil(waves)


def times(calls: Iterable[OpCall], device: Device) -> Times:
    """Bound and prediction of all calls one after the other."""
    calls = [call for call in calls if call.count]
    bounds = [(call.count, *sides(call.kernels, device)) for call in calls]
    predicted = _total(calls, device)
    saved = {cause: predicted - _total(calls, device, cause) for cause in CAUSES}
    return Times(
        bound=sum(n * max(memory, math) for n, memory, math in bounds),
        predicted=predicted,
        memory_bound=sum(n * memory for n, memory, math in bounds if memory >= math),
        limit=max(saved, key=lambda cause: saved[cause]),
    )


def _total(calls: list[OpCall], device: Device, without: str = "") -> float:
    return sum(
        call.count * sum(kernel_time(k, device, without) for k in call.kernels) for call in calls
    )


def num_gpus(
    c: ModelConfig, batch: int, context: int, device: Device, layout: Layout = Layout.NATIVE
) -> int:
    """The fewest whose memory holds weights and state; layers are not split here, nor is room left for workspaces."""
    state = batch * state_bytes(c, context, layout)
    return ceil((weight_bytes(c) + state) / device.memory)
