"""What others can do with an artefact: plain ONNX Runtime runs a self-contained folder, the ONNX checker passes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from ds4export.runtime.score import score
from tests.kit.artefacts import checkpoint_of, exported, open_runner
from tests.kit.vectors import float32_vectors

# A program of somebody else: it knows ONNX Runtime, numpy, and the row counts of ds4export/state.py.
PLAIN = """
import json, sys
import numpy as np
import onnxruntime as ort

folder, ids_path, out_path = sys.argv[1:]
config = json.load(open(folder + "/manifest.json"))["config"]
session = ort.InferenceSession(folder + "/model.onnx", providers=["CPUExecutionProvider"])
ids = np.load(ids_path)
batch, tokens = ids.shape

def rows(name):
    _, kind, layer, state = name.split(".")
    ratio = config["compress_ratios"][int(layer)]
    if state == "window":
        return config["sliding_window"] + 1
    if "pending" in state:
        return (2 if ratio == 4 else 1) * ratio + 1
    return tokens // ratio + 1

values = {
    "ids": ids,
    "slots": np.arange(batch),
    "positions": np.zeros(batch, np.int64),
    "num_new": np.full(batch, tokens),
    "logit_rows": np.tile(np.arange(tokens), (batch, 1)),
}
binding = session.io_binding()
kept = []
for info in session.get_inputs():
    array = values.get(info.name)
    if array is None:
        shape = (batch, rows(info.name), info.shape[2])
        array = np.zeros(shape, np.uint16 if "bfloat16" in info.type else np.float32)
    if array.dtype == np.uint16:
        value = ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array, 16)
    else:
        value = ort.OrtValue.ortvalue_from_numpy(array)
    kept += [array, value]
    binding.bind_ortvalue_input(info.name, value)
binding.bind_output("logits")
session.run_with_iobinding(binding)
np.save(out_path, binding.get_outputs()[0].numpy())
ours = {"ds4export", "torch", "onnx", "ml_dtypes", "safetensors"} & set(sys.modules)
assert not ours, ours
"""
GRAPHS = [
    (name, official) for name in ("tiny-a", "tiny-c", "tiny-base") for official in (False, True)
]


def run_plainly(folder: Path, tmp_path: Path, ids: np.ndarray) -> np.ndarray:
    """Logits [B, T, V] of a prefill, computed by a process that has nothing of ours on its path."""
    (tmp_path / "plain.py").write_text(PLAIN)
    np.save(tmp_path / "ids.npy", ids)
    arguments = [folder, tmp_path / "ids.npy", tmp_path / "logits.npy"]
    done = subprocess.run(
        [sys.executable, "-I", tmp_path / "plain.py", *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    logits: np.ndarray = np.load(tmp_path / "logits.npy")
    return logits


@pytest.mark.parametrize("name", ["tiny-a", "tiny-base"])
def test_plain_onnxruntime_runs_a_prefill(name: str, tmp_path: Path) -> None:
    """Measured: tiny-a 1.1e-5, tiny-base 8.8e-6."""
    golden = float32_vectors(name)
    ids = golden.steps[0].ids.numpy()
    logits = run_plainly(exported(name, self_contained=True), tmp_path, ids)
    assert np.abs(logits - golden.steps[0]["logits"].numpy()).max() < 1e-4


def test_plain_onnxruntime_runs_official_numerics(tmp_path: Path) -> None:
    """Equal to what the runtime computes over the mapped checkpoint, bit for bit."""
    ids = float32_vectors("tiny-a").ids.numpy()[:, :40]
    got = run_plainly(exported("tiny-a", official=True, self_contained=True), tmp_path, ids)
    runner = open_runner(exported("tiny-a", official=True))
    np.testing.assert_array_equal(got, score(runner, ids, prefill=40).logits)


@pytest.mark.parametrize(("name", "official"), GRAPHS)
def test_the_onnx_checker_passes(name: str, official: bool) -> None:
    folder = exported(name, official=official)
    for path in sorted(folder.glob("*.onnx")):
        onnx.checker.check_model(str(path), full_check=True)


def test_the_onnx_checker_passes_for_self_contained_folders_and_ranges() -> None:
    folders = [
        exported("tiny-a", self_contained=True),
        exported("tiny-a", layers=(0, 2)),
        exported("tiny-a", layers=(2, 5)),
    ]
    for path in (path for folder in folders for path in sorted(folder.glob("*.onnx"))):
        onnx.checker.check_model(str(path), full_check=True)


@pytest.mark.parametrize("official", [False, True])
def test_an_artefact_adds_little_to_its_checkpoint(official: bool) -> None:
    """Measured: 324 kB of graphs and 95 kB of manifest in float32."""
    files = list(exported("tiny-a", official=official).iterdir())
    assert sum(file.stat().st_size for file in files) < 1_000_000
    assert {file.name for file in files} == {"manifest.json", "model.onnx", "mtp.onnx"}


def test_a_self_contained_folder_needs_no_checkpoint() -> None:
    folder = exported("tiny-a", self_contained=True)
    weights = sum(f.stat().st_size for f in checkpoint_of("tiny-a").glob("*.safetensors"))
    copied = (folder / "weights.bin").stat().st_size
    assert 0.9 * weights < copied < 1.3 * weights  # aligned to 4096 bytes
    model = onnx.load(str(folder / "model.onnx"), load_external_data=False)
    places = {
        e.value for t in model.graph.initializer for e in t.external_data if e.key == "location"
    }
    assert places == {"weights.bin"}
