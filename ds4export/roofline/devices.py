"""Published peaks of the GPUs of the roofline with where each was read, and the assumptions about what code can have.

All peaks are dense and at boost clock; NVIDIA's tensor peaks are with sparsity, twice as high, and halved here. Its own
pages could not be opened: a source says who quotes them. Refuses times: none was measured.
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
    e4m3: bool  # mma.sync multiplies e4m3; elsewhere kernels widen it to bf16: plugins/common/tensor_core.cuh
    sources: tuple[str, ...]  # of every number above, or that it is assumed

    @property
    def l2_bandwidth(self) -> float:
        """Bytes a second that all multiprocessors together take from the L2 cache."""
        return self.fp32 / FP32_PER_CLOCK * L2_BYTES_PER_CLOCK


MIB = 1 << 20

HOPPER_PEAKS = (
    "bf16 989.4, FP8 1,978.9, fp32 66.9 TFLOPS, 132 multiprocessors: the H100 architecture paper as tabled at"
    " glennklockwood.com/garden/processors/h100"
)
HOPPER_L2 = 'L2 50 MiB: chipsandcheese.com, "Nvidia\'s H100: Funny L2, and Tons of Bandwidth", of the PCIe form'
HOPPER_SHARED = (
    "227 KB of shared memory a block: assumed, as Blackwell's compute capability 10.0 has them"
)
HOPPER_MMA = (
    "mma.sync reaches 62.9 % of the peak: assumed, after Luo et al., arXiv 2402.13499, as quoted by others; wgmma would"
    " be needed for more"
)
BLACKWELL_SHARED = (
    "shared memory a block: docs.nvidia.com/cuda/blackwell-tuning-guide, section Occupancy"
)
CONSUMER = (
    "mma.sync is the tensor instruction of this architecture, so its peak is taken whole: assumed"
)

DEVICES = (
    Device(
        "H100 SXM", 80e9, 3.35e12, 989e12, 1979e12, 67e12, 132, 50 * MIB, 227 << 10, 0.629, False,
        (
            "80 GB: glennklockwood.com/garden/processors/h100; 3.35 TB/s: Scaleway's documentation,"
            " github.com/scaleway/docs-content/pull/5834",
            HOPPER_PEAKS,
            HOPPER_L2,
            HOPPER_SHARED,
            HOPPER_MMA,
        ),
    ),
    Device(
        "H200 SXM", 141e9, 4.8e12, 989e12, 1979e12, 67e12, 132, 50 * MIB, 227 << 10, 0.629, False,
        (
            "141 GB: NVIDIA's system H200-SXM-141GBx8 in MLCommons' inference results v4.1; 4.8 TB/s, and that the chip"
            " is H100's: geektopia.es of 13 November 2023 on the announcement",
            HOPPER_PEAKS,
            HOPPER_L2,
            HOPPER_SHARED,
            HOPPER_MMA,
        ),
    ),
    Device(
        "B200", 180e9, 7.7e12, 2250e12, 4500e12, 75e12, 148, 126.5 * MIB, 227 << 10, 0.315, False,
        (
            "180 GB, 7.7 TB/s, bf16 4.5 and FP8 9 PFLOPS with sparsity, fp32 75 TFLOPS: NVIDIA's Blackwell datasheet,"
            " column HGX B200, as quoted at zdszero.github.io/Computer/Artificial_Intelligence/Hardware.html; the page"
            " of DGX B200 says 64 TB/s for eight, more than a bus of 7,680 bits at 3,996 MHz gives",
            "148 multiprocessors, L2 126.5 MiB, the bus: what the driver reports, github.com/pytorch/ao/pull/4002",
            f"227 KB of {BLACKWELL_SHARED}",
            "mma.sync reaches 31.5 % of the peak: assumed, as fast per multiprocessor as on Hopper, where the peak is"
            " half; tcgen05 would be needed for more",
        ),
    ),
    Device(
        "RTX PRO 6000", 96e9, 1.792e12, 503.8e12, 1007.6e12, 126e12, 188, 128 * MIB, 99 << 10, 1.0, True,
        (
            "96 GB, 1,792 GB/s: gpu.name, \"Nvidia unveils RTX PRO 6000\", and hardware-corner.net of 21 March 2025",
            "bf16 503.8, FP8 1,010 (here twice bf16), fp32 125.95 TFLOPS with fp32 accumulation: the comparison at"
            " hmc-tech.com/gpu/nvidia-rtx-pro-6000-blackwell-vs-amd-radeon-pro-duo-polaris",
            "188 multiprocessors, L2 128 MB: topcpu.net on the announcement at GTC 2025",
            f"99 KB of {BLACKWELL_SHARED}",
            CONSUMER,
        ),
    ),
    Device(
        "DGX Spark", 128e9, 0.273e12, 125e12, 250e12, 31e12, 48, 24 * MIB, 99 << 10, 1.0, True,
        (
            "128 GB, shared with the CPU, 273 GB/s, 6,144 cores: NVIDIA's product page as checked at"
            " ai-infrastructure.net/dgx-spark; Hot Chips named 301 GB/s for the chip",
            "fp32 31 TFLOPS, L2 24 MB: NVIDIA at Hot Chips 2025, as reported at ggmania.com of 27 August 2025",
            "bf16 and FP8: assumed, an eighth and a quarter of the 1 PFLOP that is published for FP4 with sparsity",
            "48 multiprocessors: 6,144 cores of 128, and docs/DGX_SPARK_LINUX.md of github.com/Niko1221/Strata",
            "99 KB of shared memory a block: assumed, as compute capability 12.0 has them",
            CONSUMER,
        ),
    ),
)  # fmt: skip
