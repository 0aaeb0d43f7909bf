"""Where ONNX Runtime computes, and where weights and caches lie: the host's memory or a GPU's.

Owns the providers with their options, and every copy between an array and a value on a device. Refuses a CUDA back end
that the installed ONNX Runtime has not, before it would fall back to the CPU in silence.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod

import numpy as np
import onnxruntime as ort

from ds4export.artefact.weights import NUMPY
from ds4export.errors import ToolchainError
from ds4export.runtime.cuda_device import open_cuda_device
from ds4export.runtime.device import Array, Device
from ds4export.runtime.device_memory import MemoryPlan, check_memory
from ds4export.runtime.ort_values import BFLOAT16_ONNX, numpy_value, ort_value

Providers = tuple[tuple[str, tuple[tuple[str, str], ...]], ...]
CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
# TF32 would round the factors of every float32 product to 10 bits. A session takes what it needs, not twice as much.
CUDA_OPTIONS = (("use_tf32", "0"), ("arena_extend_strategy", "kSameAsRequested"))
_ONNX_TYPES = {"FLOAT": 1, "INT8": 3, "INT64": 7, "BFLOAT16": BFLOAT16_ONNX}
_ELEMENTS = {NUMPY[name]: number for name, number in _ONNX_TYPES.items()}
_DTYPES = {number: dtype for dtype, number in _ELEMENTS.items()}


@dataclass(frozen=True)
class Placement:
    """`providers`, names and options, in the order in which ONNX Runtime asks them.

    `device_type` is its word for their memory. Without a `device`, values are views of arrays; with one they are
    copies on it.
    """

    providers: Providers = ((CPU, ()),)
    device_type: str = "cpu"
    device: Device | None = None

    def check(self, session: ort.InferenceSession) -> None:
        """ONNX Runtime leaves out a provider that cannot start, and goes on.

        Raises:
            ToolchainError: it has left one out.
        """
        names = [name for name, _ in self.providers]
        missing = [name for name in names if name not in session.get_providers()]
        if missing:
            raise ToolchainError(
                f"ONNX Runtime cannot start {missing[0]}",
                found=", ".join(session.get_providers()),
                expected=", ".join(names),
                hint="its CUDA and cuDNN libraries must be found by the loader; run `ds4export doctor`",
            )

    def check_room(self, weights: Iterable[Array], state: Iterable[Array], where: object) -> None:
        """Refuse a device on which weights and caches do not fit; activations come on top, uncounted.

        Raises:
            CapacityError: with both numbers.
        """
        if self.device is not None:
            memory = MemoryPlan(sum(w.nbytes for w in weights), sum(s.nbytes for s in state), 0)
            free, total = self.device.free_bytes(), self.device.facts.total_bytes
            check_memory(memory, free, total, where)

    def value(self, array: Array) -> ort.OrtValue:
        """An array for binding; on a device it is copied now, on the host the caller keeps it alive."""
        if self.device is None:
            return ort_value(array)
        kind = _ELEMENTS[array.dtype]
        made = ort.OrtValue.ortvalue_from_shape_and_type(
            list(array.shape), kind, self.device_type, 0
        )
        self.write(made, array)
        return made

    def write(self, value: ort.OrtValue, array: Array, offset: int = 0) -> None:
        """Copy an array to `offset` bytes behind the beginning of a value on the device."""
        assert self.device is not None, "on the host a value is its array"
        self.device.copy_in(value.data_ptr() + offset, np.ascontiguousarray(array))
        self.device.synchronise()

    def read(self, value: ort.OrtValue) -> Array:
        """A copy; bfloat16 as ml_dtypes.bfloat16."""
        if self.device is None or value.device_name() != self.device_type:
            return numpy_value(value)
        shape = tuple(value.shape())
        out = np.empty(shape, _DTYPES[value.element_type()])
        if prod(shape):
            self.device.copy_out(out, value.data_ptr())
        return out

    def run(self, session: ort.InferenceSession, binding: ort.IOBinding) -> None:
        """One run; when it returns, outputs are there."""
        session.run_with_iobinding(binding)
        if self.device is not None:
            binding.synchronize_outputs()

    def close(self) -> None:
        """Let the device's stream go."""
        if self.device is not None:
            self.device.close()


HOST = Placement()


def provider_list(providers: Providers) -> list[tuple[str, dict[str, str]]]:
    """Providers as `InferenceSession` takes them."""
    return [(name, dict(options)) for name, options in providers]


def open_cuda_placement() -> Placement:
    """The first GPU, by ONNX Runtime's CUDA provider; what it cannot compute falls to the CPU node by node.

    Raises:
        ToolchainError: the installed ONNX Runtime has no CUDA provider, or there is no driver or GPU.
    """
    available = ort.get_available_providers()
    if CUDA not in available:
        raise ToolchainError(
            "the installed ONNX Runtime has no CUDA provider",
            found=f"onnxruntime {ort.__version__} with {', '.join(available)}",
            expected=CUDA,
            hint="pip uninstall onnxruntime, then pip install 'ds4export[gpu]': they fill the same module",
        )
    return Placement(((CUDA, CUDA_OPTIONS), (CPU, ())), "cuda", open_cuda_device())
