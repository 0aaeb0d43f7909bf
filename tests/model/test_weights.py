"""From a checkpoint to a model: every dialect of storage gives the same logits, ranges of layers add up."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from ds4export.checkpoint import PRESETS, Checkpoint, open_checkpoint, write_synthetic
from ds4export.model import Transformer, build_model
from tests.kit.checkpoints import Entry, read_config, read_tensors, recorded, write_checkpoint
from tests.kit.compare import assert_close, assert_equal
from tests.kit.models import layers_of, model_pool, one_row, recorded_model

TOKENS = 40


def logits(model: Transformer) -> torch.Tensor:
    """Of the same few tokens every time."""
    ids = torch.arange(TOKENS)[None] * 7 % model.config.vocab_size
    x, _ = model(ids, one_row(0, TOKENS), model_pool(model))
    return model.logits(x, torch.arange(TOKENS)[None], model.head.weight)


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """Twelve experts: sorted as text, 10 and 11 stand before 2."""
    folder = tmp_path_factory.mktemp("weights") / "tiny"
    write_synthetic(folder, PRESETS["tiny"], seed=3)
    return open_checkpoint(folder)


def fp4_matrix(checkpoint: Checkpoint, name: str) -> NDArray[np.float64]:
    """An expert's matrix by its own name, decoded by ml_dtypes."""
    packed = checkpoint.array(f"{name}.weight").view(np.uint8)
    nibbles = np.stack((packed & 15, packed >> 4), -1).reshape(len(packed), -1)
    values = nibbles.view(ml_dtypes.float4_e2m1fn).astype(np.float64)
    scales = checkpoint.array(f"{name}.scale").view(ml_dtypes.float8_e8m0fnu).astype(np.float64)
    return values * scales.repeat(32, 1)


def test_each_token_meets_the_experts_it_chose(
    synthetic: Checkpoint, rng: np.random.Generator
) -> None:
    model = build_model(synthetic, official=False)
    assert synthetic.config.n_routed_experts == 12
    for prefix, layer in layers_of(model).items():
        x = rng.standard_normal((1, 9, synthetic.config.hidden_size)).astype(np.float32)
        ids, inputs = torch.arange(9)[None], torch.from_numpy(x)
        weights, indices = layer.ffn.gate.route(inputs, ids)
        want = np.zeros(x.shape)
        for t in range(9):
            for w, e in zip(weights[0, t].tolist(), indices[0, t].tolist(), strict=True):
                name = f"{prefix}.ffn.experts.{e}"
                w1, w2, w3 = (fp4_matrix(synthetic, f"{name}.w{i}") for i in (1, 2, 3))
                gate, up = np.minimum(w1 @ x[0, t], 10), np.clip(w3 @ x[0, t], -10, 10)
                want[0, t] += w * (w2 @ (gate / (1 + np.exp(-gate)) * up))
        num_new = torch.tensor([9])
        got = layer.ffn(inputs, ids, num_new, model.expert_rows)
        got = got - layer.ffn.shared_experts(inputs)
        assert_close(got, torch.from_numpy(want).float(), relative=1e-5, what=prefix)


def test_ranges_of_layers_add_up(synthetic: Checkpoint) -> None:
    whole = build_model(synthetic, official=False)
    ids, step = torch.arange(TOKENS)[None], one_row(0, TOKENS)
    x, _ = whole(ids, step, model_pool(whole))
    streams = None
    for layers in (range(1), range(1, 3)):
        part = build_model(synthetic, official=False, layers=layers)
        assert list(part.layers) == [str(i) for i in layers]
        assert bool(part.mtp) == (layers.stop == 3)
        streams, _ = part(ids, step, model_pool(part), streams)
    assert streams is not None
    assert_equal(streams, x)


@pytest.mark.parametrize("official", [False, True])
@pytest.mark.parametrize("set_name", ["tiny-a", "tiny-base"])
def test_float32_scales_give_the_same_logits(set_name: str, official: bool, tmp_path: Path) -> None:
    """Some -Base files are said to hold them; scales of packed FP4 stay bytes."""
    experts_are_fp4 = set_name == "tiny-a"

    def as_floats(name: str, entry: Entry) -> Entry:
        if entry.dtype != "F8_E8M0" or (experts_are_fp4 and ".experts." in name):
            return entry
        values = np.frombuffer(entry.data, ml_dtypes.float8_e8m0fnu).astype("<f4")
        return replace(entry, dtype="F32", data=values.tobytes())

    tensors = read_tensors(recorded(set_name))
    converted = {name: as_floats(name, entry) for name, entry in tensors.items()}
    folder = write_checkpoint(tmp_path / "floats", converted, read_config(set_name))
    checkpoint = open_checkpoint(folder)
    assert checkpoint.scale_dtype == "F32"
    got = logits(build_model(checkpoint, official=official))
    assert_equal(got, logits(recorded_model(set_name, official=official)))


def test_experts_that_no_file_keeps_together_are_gathered(tmp_path: Path) -> None:
    tensors = read_tensors(recorded("tiny-a"))
    shuffled = dict(sorted(tensors.items(), key=lambda item: hash_of(item[0])))
    folder = write_checkpoint(tmp_path / "shuffled", shuffled, read_config("tiny-a"))
    model = build_model(open_checkpoint(folder), official=False)
    assert_equal(logits(model), logits(recorded_model("tiny-a", official=False)))


def hash_of(name: str) -> int:
    """Some order that is nobody's."""
    return sum(ord(c) * 31**i for i, c in enumerate(name)) % 1009


def test_weights_are_views_of_the_map(synthetic: Checkpoint) -> None:
    model = build_model(synthetic, official=True)
    scale = model.get_buffer("layers.1.attn.wq_a.scale").numpy()
    assert np.shares_memory(scale, synthetic.array("layers.1.attn.wq_a.scale"))
    run = model.get_buffer("layers.1.ffn.experts.weight").numpy()
    assert np.shares_memory(run, synthetic.array("layers.1.ffn.experts.10.w2.weight"))


def test_mtp_is_left_out_on_request(synthetic: Checkpoint) -> None:
    assert not build_model(synthetic, official=False, with_mtp=False).mtp


def test_the_model_brings_its_ops_along() -> None:
    """On its own: any other test may have imported them."""
    code = "import torch, ds4export.model; torch.ops.ds4.embed"
    subprocess.run([sys.executable, "-c", code], check=True)
