"""The architecture of this machine's first GPU, asked of its driver: enterprise TensorRT builds for no other.

Refuses a machine without a driver or without a GPU.
"""

from __future__ import annotations

import ctypes

from ds4export.errors import ToolchainError

DRIVER = "libcuda.so.1"
_MAJOR, _MINOR = 75, 76  # CUdevice_attribute: compute capability


def this_gpu(driver: str = DRIVER) -> str:
    """As manifests name it: `SM90`.

    Raises:
        ToolchainError: no driver, or no GPU that it can use.
    """
    try:
        cuda = ctypes.CDLL(driver)
    except OSError as cause:
        raise _refusal(str(cause)) from None
    device, part = ctypes.c_int(), ctypes.c_int()
    _check(cuda.cuInit(0), "cuInit")
    _check(cuda.cuDeviceGet(ctypes.byref(device), 0), "cuDeviceGet")
    parts = []
    for attribute in (_MAJOR, _MINOR):
        code = cuda.cuDeviceGetAttribute(ctypes.byref(part), attribute, device)
        _check(code, "cuDeviceGetAttribute")
        parts.append(part.value)
    return "SM{}{}".format(*parts)


def _check(code: int, call: str) -> None:
    if code:
        raise _refusal(f"error {code} of the driver's {call}")


def _refusal(found: str) -> ToolchainError:
    return ToolchainError(
        "there is no GPU to build for: run this on the machine with the GPU that the engine is for, NVIDIA's "
        "driver and TensorRT 10.16 or newer installed there",
        found=found,
        expected="a GPU that NVIDIA's driver can use",
        hint="for an engine built ahead of time without a GPU, use --target tensorrt-rtx",
    )
