"""Published peaks of the GPUs of the roofline, and the stated assumptions about what code can have of them.

All peaks are dense and at boost clock. Refuses measured numbers: there are none.
"""

from __future__ import annotations

from dataclasses import dataclass

# Assumptions, the same for every GPU; each errs towards the kernels, so that shares are upper limits.
DRAM_SHARE = 0.92  # of the published bandwidth that long copies reach
LAUNCH_S = (
    2e-6  # between the end of one kernel and the first loads of the next, in a captured graph
)
LATENCY_S = 0.5e-6  # from a load to its data, memory idle
IN_FLIGHT = (
    32 << 10
)  # bytes that a block asks for at a time: stream_rows holds 256 lanes x 4 chunks x 2 rows x 16 B
L2_BYTES_PER_CLOCK = 64  # from the L2 cache into one multiprocessor: the width of its port
FP32_PER_CLOCK = 256  # operations of one multiprocessor: 128 lanes, a multiply and an add each


@dataclass(frozen=True)
class Device:
    """One GPU; sizes in bytes, bandwidth in bytes and peaks in operations a second."""

    name: str
    memory: float
    bandwidth: float
    bf16: float
    fp8: float
    fp32: float
    multiprocessors: int
    l2: float
    shared: int  # that a block may ask for
    mma_sync: float  # share of the tensor peaks that mma.sync reaches, which all kernels use
    source: str
    mma_source: str

    @property
    def l2_bandwidth(self) -> float:
        """Bytes a second that all multiprocessors together take from the L2 cache."""
        return self.fp32 / FP32_PER_CLOCK * L2_BYTES_PER_CLOCK


HOPPER = (
    "assumed, after Luo et al., arXiv 2402.13499: mma.sync reaches 62.9 % of the peak;"
    " wgmma would be needed for more"
)
CONSUMER = "mma.sync is the tensor instruction of this architecture"

DEVICES = (
    Device(
        "H100 SXM", 80e9, 3.35e12, 989e12, 1979e12, 67e12, 132, 50e6, 227 << 10, 0.629,
        "NVIDIA H100 Tensor Core GPU datasheet (tensor peaks there with sparsity, here halved); H100 whitepaper for"
        " multiprocessors and L2",
        HOPPER,
    ),
    Device(
        "H200 SXM", 141e9, 4.8e12, 989e12, 1979e12, 67e12, 132, 50e6, 227 << 10, 0.629,
        "NVIDIA H200 Tensor Core GPU datasheet, likewise halved",
        HOPPER,
    ),
    Device(
        "B200", 180e9, 8e12, 2250e12, 4500e12, 75e12, 148, 126e6, 227 << 10, 0.315,
        "NVIDIA DGX B200 datasheet over 8 GPUs (1,440 GB, 64 TB/s, FP8 72 PFLOPS with sparsity); HGX B200 page for"
        " FP32; multiprocessors and L2 as the driver reports them",
        "assumed: per multiprocessor mma.sync is no faster than on Hopper, where the peak is half; tcgen05 would be"
        " needed for more",
    ),
    Device(
        "RTX PRO 6000", 96e9, 1.792e12, 500e12, 1000e12, 125e12, 188, 128e6, 99 << 10, 1.0,
        "NVIDIA RTX PRO 6000 Blackwell Workstation Edition datasheet (4,000 AI TOPS are FP4 with sparsity: FP8 a"
        " quarter, bf16 an eighth)",
        CONSUMER,
    ),
    Device(
        "DGX Spark", 128e9, 0.273e12, 125e12, 250e12, 31e12, 48, 24e6, 99 << 10, 1.0,
        "NVIDIA DGX Spark datasheet (1 PFLOP is FP4 with sparsity: FP8 a quarter, bf16 an eighth; 6,144 cores; memory"
        " is shared with the CPU); FP32 and L2 as shown at Hot Chips 2025",
        CONSUMER,
    ),
)  # fmt: skip
