"""What is built for a GPU, on a machine without one: it links, loads, and says that there is no driver.

This is also the control of the stand-in: without it, nothing runs.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest
import torch

from ds4export.cuda.build import KernelBuild, Target, build_library, find_nvcc
from ds4export.cuda.library import KernelLibrary
from ds4export.cuda.register import Caller
from ds4export.errors import RuntimeInputError, ToolchainError
from ds4export.ops import ALL_OPS
from ds4export.ptxhost.toolchain import find_toolchain
from tests.cuda.plugins import check_plugins

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="there is a GPU here"),
]
TARGET = Target(90)
NO_DRIVER = "CUDA driver version is insufficient"


@pytest.fixture(scope="module")
def build() -> KernelBuild:
    try:
        return build_library(TARGET, ops=["rms_norm"], nvcc=find_nvcc())
    except ToolchainError as error:
        if "a compile failed" in error.what:
            raise
        pytest.skip(error.what)


def test_the_library_needs_no_runtime_of_the_machine(build: KernelBuild) -> None:
    assert b"libcudart.so" not in build.library.read_bytes()
    assert build.warnings == ()


def test_a_launch_says_that_there_is_no_driver(build: KernelBuild) -> None:
    library = KernelLibrary(build.library)
    assert library.ops == ("rms_norm",)
    inputs = [torch.ones(2, 32).bfloat16(), torch.ones(32).bfloat16()]
    with pytest.raises(RuntimeInputError) as refused:
        Caller(library)(ALL_OPS["rms_norm"], inputs, [1e-6])
    assert NO_DRIVER in refused.value.found
    with pytest.raises(ToolchainError, match="a kernel failed on the device"):
        library.synchronise()


def test_the_plugin_host_builds_on_the_real_runtime(
    build: KernelBuild, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    try:
        headers = find_toolchain().tensorrt_include
    except ToolchainError as error:
        pytest.skip(error.what)
    (tmp_path / "include").symlink_to(headers)
    monkeypatch.setenv("TENSORRT_ROOT", str(tmp_path))
    found = check_plugins(["rms_norm"], TARGET, build.nvcc, time.monotonic() + 60)
    (line,) = found.wrong
    assert line.startswith("plugin host rms_norm ")
    assert NO_DRIVER in line


def test_without_headers_the_plugin_host_says_so(
    build: KernelBuild, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TENSORRT_ROOT", str(tmp_path))
    found = check_plugins(["rms_norm"], TARGET, build.nvcc, time.monotonic() + 60)
    assert found.summary.startswith("not run: no NvInfer.h below TENSORRT_ROOT")
    assert found.wrong == []
