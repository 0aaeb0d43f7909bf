"""A GPU through the CUDA runtime, libcudart, by ctypes.

Owns the search for the library, the signatures of the entries that are used, and what their error codes mean to a
user. Refuses a machine without the library, without a driver or without a GPU, each in a sentence.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from ctypes import byref, c_char_p, c_int, c_size_t, c_uint, c_ulonglong, c_void_p
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ds4export.errors import CapacityError, ToolchainError
from ds4export.report import format_bytes
from ds4export.runtime.device import Array, DeviceFacts

LIBRARIES = ("libcudart.so.13", "libcudart.so.12")
# Folders of NVIDIA's Python packages below `nvidia/`, and where installers put the toolkit.
_PACKAGED = ("cu13/lib", "cuda_runtime/lib")
_INSTALLED = ("/usr/local/cuda/lib64", "/usr/local/cuda/lib")
_TO_DEVICE, _TO_HOST, _ON_DEVICE = 1, 2, 3  # cudaMemcpyKind
_OUT_OF_MEMORY, _NO_DRIVER, _NO_GPU = 2, 35, 100  # cudaError_t
_NON_BLOCKING, _THREAD_LOCAL = 1, 1  # of a stream; of a capture: other threads may go on allocating
_MAJOR, _MINOR = 75, 76  # cudaDeviceAttr: compute capability

_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "cudaRuntimeGetVersion": (c_void_p,),
    "cudaGetDeviceCount": (c_void_p,),
    "cudaDeviceGetAttribute": (c_void_p, c_int, c_int),
    "cudaMemGetInfo": (c_void_p, c_void_p),
    "cudaMalloc": (c_void_p, c_size_t),
    "cudaFree": (c_void_p,),
    "cudaMemsetAsync": (c_void_p, c_int, c_size_t, c_void_p),
    "cudaMemcpyAsync": (c_void_p, c_void_p, c_size_t, c_int, c_void_p),
    "cudaMemcpy2DAsync": (
        *(c_void_p, c_size_t, c_void_p, c_size_t, c_size_t, c_size_t, c_int, c_void_p),
    ),
    "cudaStreamCreateWithFlags": (c_void_p, c_uint),
    "cudaStreamDestroy": (c_void_p,),
    "cudaStreamSynchronize": (c_void_p,),
    "cudaStreamBeginCapture": (c_void_p, c_int),
    "cudaStreamEndCapture": (c_void_p, c_void_p),
    "cudaGraphInstantiateWithFlags": (c_void_p, c_void_p, c_ulonglong),
    "cudaGraphDestroy": (c_void_p,),
    "cudaGraphLaunch": (c_void_p, c_void_p),
    "cudaGraphExecDestroy": (c_void_p,),
    "cudaGetLastError": (),
}


def open_cuda_device(library: Path | None = None) -> CudaDevice:
    """The first GPU of this machine.

    Args:
        library: a libcudart; by default the one that the loader, a Python package or the toolkit offers.

    Raises:
        ToolchainError: no libcudart, no driver, or no GPU.
    """
    return CudaDevice(_load(library))


def _load(library: Path | None) -> ctypes.CDLL:
    if library is not None and not library.is_file():
        raise _no_library(library, "no such file")
    refusals = []
    for place in _candidates() if library is None else (str(library),):
        try:
            # A plugin library that asks for this name is given the one that is loaded, wherever it lay.
            return ctypes.CDLL(place)
        except OSError as cause:
            refusals.append(str(cause))
    raise _no_library(
        library or "the loader's path, Python packages, /usr/local/cuda", refusals[-1]
    )


def _candidates() -> Iterator[str]:
    yield from LIBRARIES
    spec = find_spec("nvidia")
    packages = spec.submodule_search_locations if spec is not None else None
    folders = [Path(root) / below for root in packages or () for below in _PACKAGED]
    for folder in (*folders, *map(Path, _INSTALLED)):
        yield from (str(folder / name) for name in LIBRARIES if (folder / name).is_file())


def _no_library(where: object, found: str) -> ToolchainError:
    return ToolchainError(
        "the CUDA runtime (libcudart) cannot be loaded",
        where=where,
        found=found,
        expected=" or ".join(LIBRARIES),
        hint="pip install nvidia-cuda-runtime, or install NVIDIA's CUDA toolkit",
    )


class CudaDevice:
    """See `Device`. Holds one stream of its own; memory belongs to the callers."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        for name, types in _SIGNATURES.items():
            entry = getattr(library, name)
            entry.argtypes, entry.restype = types, c_int
        library.cudaGetErrorString.argtypes = (c_int,)
        library.cudaGetErrorString.restype = c_char_p
        self._check_present()
        self._stream = c_void_p()
        self._call("cudaStreamCreateWithFlags", byref(self._stream), _NON_BLOCKING)
        self._facts = self._read_facts()

    def _check_present(self) -> None:
        count = c_int()
        code = self._library.cudaGetDeviceCount(byref(count))
        if code == 0 and count.value > 0:
            return
        self._library.cudaGetLastError()  # a later call must not report it again
        wants_driver = code == _NO_DRIVER
        raise ToolchainError(
            "there is no NVIDIA driver, or it is too old for this CUDA runtime"
            if wants_driver
            else "there is no NVIDIA GPU",
            found=self._text(code) if code else "0 devices",
            expected="a GPU and a driver that `nvidia-smi` shows",
            hint="install NVIDIA's driver on a machine with a GPU; --backend onnxruntime needs neither",
        )

    def _read_facts(self) -> DeviceFacts:
        major, minor, version = c_int(), c_int(), c_int()
        self._call("cudaDeviceGetAttribute", byref(major), _MAJOR, 0)
        self._call("cudaDeviceGetAttribute", byref(minor), _MINOR, 0)
        self._call("cudaRuntimeGetVersion", byref(version))
        runtime = f"{version.value // 1000}.{version.value % 1000 // 10}"
        return DeviceFacts(f"SM{major.value}{minor.value}", self._memory()[1], runtime)

    @property
    def facts(self) -> DeviceFacts:
        return self._facts

    @property
    def stream(self) -> int:
        return self._stream.value or 0

    def free_bytes(self) -> int:
        return self._memory()[0]

    def _memory(self) -> tuple[int, int]:
        free, total = c_size_t(), c_size_t()
        self._call("cudaMemGetInfo", byref(free), byref(total))
        return free.value, total.value

    def allocate(self, num_bytes: int) -> int:
        address = c_void_p()
        code = self._library.cudaMalloc(byref(address), max(num_bytes, 1))
        if code == _OUT_OF_MEMORY:
            self._library.cudaGetLastError()
            raise CapacityError(
                "the GPU has not enough memory left",
                where=self._facts.architecture,
                found=f"{format_bytes(self.free_bytes())} free of {format_bytes(self._facts.total_bytes)}",
                expected=f"{format_bytes(num_bytes)} in one piece",
                hint="end other programs on the GPU, or open with smaller num_slots or max_context",
            )
        self._check("cudaMalloc", code)
        return address.value or 0

    def release(self, address: int) -> None:
        self._call("cudaFree", address)

    def fill(self, address: int, byte: int, num_bytes: int) -> None:
        self._call("cudaMemsetAsync", address, byte, num_bytes, self._stream)

    def copy_in(self, address: int, array: Array) -> None:
        assert array.flags.c_contiguous, "copies go byte by byte"
        if array.nbytes:
            self._copy(address, array.ctypes.data, array.nbytes, _TO_DEVICE)

    def copy_out(self, array: Array, address: int) -> None:
        assert array.flags.c_contiguous, "copies go byte by byte"
        assert array.flags.writeable, "the bytes go into the array"
        if array.nbytes:
            self._copy(array.ctypes.data, address, array.nbytes, _TO_HOST)
        self.synchronise()

    def _copy(self, to: int, source: int, num_bytes: int, kind: int) -> None:
        self._call("cudaMemcpyAsync", to, source, num_bytes, kind, self._stream)

    def copy_rows(
        self, to: int, to_pitch: int, source: int, pitch: int, width: int, rows: int
    ) -> None:
        if not width or not rows:
            return
        where = (to, to_pitch, source, pitch, width, rows)
        self._call("cudaMemcpy2DAsync", *where, _ON_DEVICE, self._stream)

    def synchronise(self) -> None:
        self._call("cudaStreamSynchronize", self._stream)

    def begin_capture(self) -> None:
        self._call("cudaStreamBeginCapture", self._stream, _THREAD_LOCAL)

    def end_capture(self) -> int:
        graph, executable = c_void_p(), c_void_p()
        self._call("cudaStreamEndCapture", self._stream, byref(graph))
        try:
            self._call("cudaGraphInstantiateWithFlags", byref(executable), graph, 0)
        finally:
            self._call("cudaGraphDestroy", graph)
        return executable.value or 0

    def launch(self, graph: int) -> None:
        self._call("cudaGraphLaunch", graph, self._stream)

    def release_graph(self, graph: int) -> None:
        self._call("cudaGraphExecDestroy", graph)

    def close(self) -> None:
        if self._stream:
            stream, self._stream = self._stream, c_void_p()
            self._call("cudaStreamDestroy", stream)

    def _call(self, name: str, *arguments: Any) -> None:
        self._check(name, getattr(self._library, name)(*arguments))

    def _check(self, name: str, code: int) -> None:
        if code:
            self._library.cudaGetLastError()  # an error that was told is not told again
            raise ToolchainError(
                "the CUDA runtime refuses",
                where=name,
                found=f"{self._text(code)} (cudaError {code})",
                hint="after a fault inside a kernel only a new process goes on; run `ds4export doctor`",
            )

    def _text(self, code: int) -> str:
        text: bytes = self._library.cudaGetErrorString(code)
        return text.decode()
