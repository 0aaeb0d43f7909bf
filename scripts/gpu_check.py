"""Check the kernels on this machine's GPU in one command; exit 0 only if everything ran and all of it holds.

    python scripts/gpu_check.py [--ops hc_post ...] [--limit-s 570] [--out docs/gpu]
    python scripts/gpu_check.py --dry-run [--ops ...] [--models tiny-a ...]

Needs an NVIDIA GPU, nvcc with g++, torch and numpy; no network, no TensorRT, no other package. In this order:

build       libds4kernels.so for this GPU
ops         every case of every op, the kernel against the reference
models      tiny-a, tiny-c and nano by the back end torch-cuda: each op call of the reference, then end to end
timings     CUDA events beside the roofline
plugins     the plugin host on the real runtime, where TENSORRT_ROOT has TensorRT's headers
sanitizers  compute-sanitizer memcheck and racecheck on the small cases, each with a planted fault

Leaves <device>.json and <device>.md in --out. --dry-run does the same on the host, through the same binding, with the
stand-in CUDA runtime; it needs nvcc, cuobjdump and TensorRT's headers (`make plugins`), and no GPU. It is no run on a
GPU, and leaves nothing in docs.
"""

from __future__ import annotations

import sys
from pathlib import Path


def main() -> None:
    """Nothing of ds4export is imported before the packages that are absent have their placeholders."""
    sys.path.insert(0, str(Path(__file__).parent.parent))
    from ds4export.cuda.bare import allow_absent_packages

    allow_absent_packages()
    from tests.cuda.command import command

    command(__doc__ or "")


if __name__ == "__main__":
    main()
