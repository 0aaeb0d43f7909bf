"""The back end `torch-cuda` on the stand-in runtime: a window layer of tiny-a, whole, by nodes and by half layers."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ds4export.artefact import open_artefact_folder
from ds4export.cuda.backend import KernelBackend, caller_for_gpu
from ds4export.cuda.library import KernelLibrary
from ds4export.cuda.register import Caller
from ds4export.errors import RuntimeInputError, ToolchainError
from ds4export.ops import ALL_OPS
from ds4export.parity.subject import Subject
from ds4export.ptxhost.toolchain import REPOSITORY, find_toolchain
from tests.cuda.stand_in import StandIn, build_stand_in
from tests.kit.artefacts import exported


@pytest.fixture(scope="module")
def artefact() -> Path:
    return exported("tiny-a", official=True, layers=(0, 1))


@pytest.fixture(scope="module")
def whole() -> StandIn:
    try:
        find_toolchain()
    except ToolchainError as error:
        pytest.skip(error.what)
    return build_stand_in(None)


def run(stand_in: StandIn, module: str, *arguments: Path) -> Any:
    """What a module of tests/cuda prints, run on the stand-in runtime."""
    done = subprocess.run(
        [sys.executable, "-m", f"tests.cuda.{module}", *map(str, arguments)],
        cwd=REPOSITORY,
        env={**os.environ, **stand_in.settings(), "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
def test_a_layer_of_an_artefact(whole: StandIn, artefact: Path) -> None:
    found = run(whole, "backend_run", artefact, whole.build.library)
    assert {"streams 0", "streams 1", "state.layers.0.window"} <= set(found["run"])
    assert {"layers.0/attn", "layers.0/ffn", "trace"} <= set(found["parts"])
    assert len(found["parts"]) > 15
    # One layer, so that no flipped expert is carried on; what a planted fault gives is above 0.1.
    assert max(found["run"].values()) < 0.02, found["run"]
    assert max(found["parts"].values()) < 0.02, found["parts"]


@pytest.mark.slow
def test_every_op_of_a_step_can_be_timed(whole: StandIn) -> None:
    found = run(whole, "timings_run", whole.build.library)
    assert len(found) == 50
    assert {timing["op"] for timing in found} == set(ALL_OPS) - {"mtp_merge"}
    assert all(t["median_us"] > 0 and t["num_bytes"] > 0 and t["bound_us"] > 0 for t in found)


def test_float32_is_refused(library: KernelLibrary) -> None:
    subject = Subject(open_artefact_folder(exported("tiny-a", layers=(0, 1))))
    with pytest.raises(RuntimeInputError, match="the kernels compute official numerics only"):
        KernelBackend(subject, Caller(library, in_place=True), device="cpu")


def test_ops_without_a_kernel_are_named(artefact: Path, library: KernelLibrary) -> None:
    subject = Subject(open_artefact_folder(artefact))
    with pytest.raises(ToolchainError, match="ops of the artefact have no kernel") as refused:
        KernelBackend(subject, Caller(library, in_place=True), device="cpu")
    assert "attention_window" in refused.value.found
    assert "rms_norm" not in refused.value.found.split(", ")


@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="there is a GPU here")
def test_without_a_gpu_it_says_so() -> None:
    with pytest.raises(ToolchainError, match="the back end `torch-cuda` needs an NVIDIA GPU"):
        caller_for_gpu()
