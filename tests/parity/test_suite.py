"""`pytest --pyargs ds4export.parity`: the suite that people run on their own artefact."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.parity.faults import Bench
from tests.parity.plant import Plant


def suite(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider"]
    return subprocess.run(
        [*command, "--pyargs", "ds4export.parity", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


def test_without_an_artefact_everything_is_skipped(tmp_path: Path) -> None:
    done = suite(tmp_path)
    assert done.returncode == 0, done.stdout
    assert "6 skipped" in done.stdout
    assert "needs --artefact PATH" in done.stdout


@pytest.mark.slow
def test_a_sound_artefact_passes(small_artefact: Path, tmp_path: Path) -> None:
    done = suite(tmp_path, "--artefact", str(small_artefact), "--backend", "onnxruntime")
    assert done.returncode == 0, done.stdout
    assert "failed" not in done.stdout


@pytest.mark.slow
def test_a_fault_fails_the_tests_of_its_op(bench: Bench, tmp_path: Path) -> None:
    plant = Plant(bench.artefact("tiny-base", "float32"), tmp_path / "planted")
    plant.weight("layers.1.attn.wkv.weight", lambda codes: codes[::-1])
    done = suite(tmp_path, "--artefact", str(plant.save()))
    assert done.returncode == 1
    assert "test_op[layers.1/attn/wkv/linear_fp8]" in done.stdout
    assert "first divergence: layer 1, wkv linear_fp8" in done.stdout
    assert "test_op[layers.0/attn/wkv/linear_fp8]" not in done.stdout
