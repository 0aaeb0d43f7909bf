"""OrtValues over numpy memory, bfloat16 included, without copies."""

from __future__ import annotations

import ctypes
from typing import Any

import ml_dtypes
import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

BFLOAT16_ONNX = 16
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def ort_value(array: NDArray[Any]) -> ort.OrtValue:
    """An OrtValue on the array's own memory; the caller keeps the array alive."""
    if array.dtype == BFLOAT16:
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array.view(np.uint16), BFLOAT16_ONNX)
    return ort.OrtValue.ortvalue_from_numpy(array)


def numpy_value(value: ort.OrtValue) -> NDArray[Any]:
    """A copy of an OrtValue; bfloat16 as ml_dtypes.bfloat16, which onnxruntime cannot hand to numpy itself."""
    if "bfloat16" not in value.data_type():
        return value.numpy()
    shape = tuple(value.shape())
    count = int(np.prod(shape))
    if count == 0:
        return np.zeros(shape, BFLOAT16)
    raw = (ctypes.c_uint16 * count).from_address(value.data_ptr())
    return np.ctypeslib.as_array(raw).copy().view(BFLOAT16).reshape(shape)
