"""The CUDA device over the stand-in libcudart: memory, copies, captures, and what a user reads when something lacks."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from ds4export.errors import CapacityError, ToolchainError
from ds4export.runtime.cuda_device import LIBRARIES, CudaDevice, open_cuda_device
from tests.runtime.trt_kit import cudart, open_device


@pytest.fixture
def device() -> Iterator[CudaDevice]:
    made = open_device()
    yield made
    made.close()


def test_facts(device: CudaDevice) -> None:
    assert device.facts.architecture == "SM80"
    assert device.facts.runtime.startswith("13.")
    assert device.free_bytes() == device.facts.total_bytes
    assert device.stream


def test_copies_come_back(device: CudaDevice, rng: np.random.Generator) -> None:
    array = rng.standard_normal((7, 5), np.float32)
    address = device.allocate(array.nbytes)
    assert address % 256 == 0
    device.copy_in(address, array)
    back = np.zeros_like(array)
    device.copy_out(back, address)
    np.testing.assert_array_equal(back, array)
    device.fill(address, 0xFF, array.nbytes)
    device.copy_out(back, address)
    assert np.isnan(back).all()
    device.release(address)
    assert device.free_bytes() == device.facts.total_bytes


def test_rows_are_copied_by_their_pitches(device: CudaDevice) -> None:
    """Columns 2 to 4 of four rows, packed, then put back at column 1."""
    table = np.arange(24, dtype=np.int64).reshape(4, 6)
    source, packed = device.allocate(table.nbytes), device.allocate(4 * 3 * 8)
    device.copy_in(source, table)
    device.copy_rows(packed, 24, source + 16, 48, 24, 4)
    got = np.zeros((4, 3), np.int64)
    device.copy_out(got, packed)
    np.testing.assert_array_equal(got, table[:, 2:5])
    device.copy_rows(source + 8, 48, packed, 24, 24, 4)
    device.copy_out(table, source)
    np.testing.assert_array_equal(table[:, 1:4], got)
    device.copy_rows(source, 8, packed, 8, 0, 4)
    with pytest.raises(ToolchainError, match="the CUDA runtime refuses") as caught:
        device.copy_rows(source, 8, packed, 24, 24, 4)
    assert caught.value.where == "cudaMemcpy2DAsync"
    for address in (source, packed):
        device.release(address)


def test_a_captured_copy_runs_at_every_launch_and_not_before(device: CudaDevice) -> None:
    a, b = device.allocate(8), device.allocate(8)
    device.copy_in(a, np.array([1], np.int64))
    device.copy_in(b, np.array([0], np.int64))
    device.begin_capture()
    device.copy_rows(b, 8, a, 8, 8, 1)
    graph = device.end_capture()
    out = np.zeros(1, np.int64)
    device.copy_out(out, b)
    assert out == 0
    for value in (5, 6):
        device.copy_in(a, np.array([value], np.int64))
        device.launch(graph)
        device.copy_out(out, b)
        assert out == value
    device.release_graph(graph)
    for address in (a, b):
        device.release(address)


@pytest.mark.parametrize("call", ["allocate", "synchronise"])
def test_what_no_capture_can_hold_loses_it(device: CudaDevice, call: str) -> None:
    device.begin_capture()
    with pytest.raises(ToolchainError, match="refuses") as caught:
        device.allocate(8) if call == "allocate" else device.synchronise()
    assert "cudaError 900" in caught.value.found
    with pytest.raises(ToolchainError, match="refuses") as caught:
        device.end_capture()
    assert "cudaError 901" in caught.value.found
    device.release(device.allocate(8))


def test_a_full_device_says_both_numbers(
    device: CudaDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DS4_HOST_TOTAL_BYTES", "1000000")
    kept = device.allocate(400_000)
    with pytest.raises(CapacityError, match="the GPU has not enough memory left") as caught:
        device.allocate(600_001)
    assert caught.value.found.startswith("600.0 kB free of")
    assert caught.value.expected == "600.0 kB in one piece"
    device.release(kept)
    device.release(device.allocate(600_001))


def test_memory_that_was_never_given(device: CudaDevice) -> None:
    with pytest.raises(ToolchainError, match="refuses") as caught:
        device.release(4096)
    assert caught.value.where == "cudaFree"
    assert caught.value.found == "invalid argument (cudaError 1)"


@pytest.mark.parametrize(
    ("code", "what", "found"),
    [
        (35, "there is no NVIDIA driver, or it is too old", "driver version is insufficient"),
        (100, "there is no NVIDIA GPU", "no CUDA-capable device"),
    ],
)
def test_a_machine_without_driver_or_gpu(
    code: int, what: str, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DS4_HOST_NO_DEVICE", str(code))
    with pytest.raises(ToolchainError, match=what) as caught:
        open_device()
    assert found in caught.value.found
    assert "--backend onnxruntime" in caught.value.hint


def test_a_machine_without_the_runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ToolchainError, match="libcudart") as caught:
        open_cuda_device(tmp_path / "libcudart.so.13")
    assert caught.value.found == "no such file"
    (tmp_path / "libcudart.so.13").write_bytes(b"no library")
    with pytest.raises(ToolchainError, match="libcudart") as caught:
        open_cuda_device(tmp_path / "libcudart.so.13")
    assert "pip install nvidia-cuda-runtime" in caught.value.hint
    monkeypatch.setattr("ds4export.runtime.cuda_device._candidates", lambda: iter(["libno.so"]))
    with pytest.raises(ToolchainError, match="libcudart") as caught:
        open_cuda_device()
    assert "libno.so" in caught.value.found
    assert caught.value.expected == " or ".join(LIBRARIES)


@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="this machine has a GPU")
def test_a_machine_without_a_gpu_is_refused_in_a_sentence() -> None:
    """Whatever real libcudart is here, or none; a process of its own, as here the stand-in has the name."""
    code = (
        "from ds4export.errors import Ds4Error\n"
        "from ds4export.runtime.cuda_device import open_cuda_device\n"
        "try: open_cuda_device()\n"
        "except Ds4Error as refusal: print(refusal)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.startswith(
        ("there is no NVIDIA", "the CUDA runtime (libcudart) cannot be loaded")
    ), done
    assert "hint: " in done.stdout


@pytest.mark.gpu
def test_a_real_gpu_copies_and_captures() -> None:
    device = open_cuda_device()
    a, b = device.allocate(64), device.allocate(64)
    want = np.arange(8, dtype=np.int64)
    device.copy_in(a, want)
    device.begin_capture()
    device.copy_rows(b, 64, a, 64, 64, 1)
    graph = device.end_capture()
    device.launch(graph)
    got = np.zeros_like(want)
    device.copy_out(got, b)
    np.testing.assert_array_equal(got, want)
    device.release_graph(graph)
    device.close()


def test_the_stand_in_is_the_library_that_was_opened() -> None:
    """No real runtime can have answered the tests above: it has no such entry."""
    assert hasattr(ctypes.CDLL(str(cudart())), "cudaStandInVisitKernels")
