"""What is on disk against the config: every verdict, and what becomes of foreign draft heads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ds4export.checkpoint import Checkpoint, open_checkpoint
from ds4export.errors import CheckpointError
from tests.kit.checkpoints import (
    Entry,
    Tensors,
    filled,
    read_config,
    read_tensors,
    recorded,
    reshaped,
    write_checkpoint,
)

W1 = "layers.0.ffn.experts.0.w1"
WQ_A = "layers.0.attn.wq_a"
DRAFT_EXTRAS = ("mtp.0.main_proj.weight", "mtp.2.markov_head.weight")


class Folder:
    """A checkpoint to damage before it is opened."""

    def __init__(self, path: Path, name: str = "tiny-a") -> None:
        self.path = path
        self.config = read_config(name)
        self.tensors: Tensors = read_tensors(recorded(name))

    def open(self) -> Checkpoint:
        return open_checkpoint(write_checkpoint(self.path, self.tensors, self.config))

    def refusal(self) -> CheckpointError:
        with pytest.raises(CheckpointError) as caught:
            self.open()
        return caught.value


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "checkpoint")


@pytest.fixture
def base(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "base", "tiny-base")


def test_a_missing_tensor_is_named_with_the_nearest(folder: Folder) -> None:
    folder.tensors["layers.0.attn.wq_aa.scale"] = folder.tensors.pop(f"{WQ_A}.scale")
    error = folder.refusal()
    assert error.what == f"`{WQ_A}.scale` is missing"
    assert error.where == "all shards, rule expected_tensors in checkpoint/names.py"
    assert error.hint == "the nearest name is `layers.0.attn.wq_aa.scale`"


def test_many_missing_tensors_are_counted(folder: Folder) -> None:
    for name in [name for name in folder.tensors if name.startswith("layers.4.")]:
        del folder.tensors[name]
    error = folder.refusal()
    assert error.what == "`layers.4.attn_norm.weight` is missing (and 76 more)"
    assert error.hint == "the index lacks it: fetch the checkpoint again"


def test_an_extra_tensor_is_named_with_the_nearest(folder: Folder) -> None:
    folder.tensors["layers.0.attn.wq_c.scale"] = filled("F32", 1, 2)
    error = folder.refusal()
    assert error.what == "`layers.0.attn.wq_c.scale` is not a tensor of this model"
    assert error.found == "F32 [1, 2]"
    assert "layers.0.attn.wq_" in error.hint


def test_an_extra_tensor_like_no_other_is_of_another_revision(folder: Folder) -> None:
    folder.tensors["visual.patch"] = filled("BF16", 3)
    error = folder.refusal()
    assert error.what == "`visual.patch` is not a tensor of this model"
    assert error.hint == "the weights are of another revision"


def test_a_wrong_shape_shows_both(folder: Folder) -> None:
    folder.tensors[f"{WQ_A}.scale"] = filled("F8_E8M0", 2, 4)
    error = folder.refusal()
    assert str(error) == (
        "`layers.0.attn.wq_a.scale` has the wrong shape\n"
        "  where:    shard model.safetensors, rule expected_tensors in checkpoint/names.py\n"
        "  found:    [2, 4]\n"
        "  expected: [1, 2]\n"
        "\n"
        "hint: use the config.json that ships with these weights"
    )


def test_a_transposed_matrix_is_refused(folder: Folder) -> None:
    name = f"{WQ_A}.weight"
    folder.tensors[name] = reshaped(folder.tensors[name], 256, 128)
    error = folder.refusal()
    assert (error.found, error.expected) == ("[256, 128]", "[128, 256]")


@pytest.mark.parametrize(
    ("name", "entry", "expected"),
    [
        ("norm.weight", filled("F32", 256), "BF16"),
        ("hc_head_base", filled("BF16", 4), "F32"),
        (f"{WQ_A}.weight", filled("F8_E5M2", 128, 256), "F8_E4M3"),
        (f"{WQ_A}.scale", filled("U8", 1, 2), "F8_E8M0 or F32"),
        (f"{W1}.weight", filled("U8", 128, 128), "I8"),
        (f"{W1}.scale", filled("F32", 128, 8), "F8_E8M0"),
        ("layers.0.ffn.gate.tid2eid", filled("I32", 2048), "I64"),
    ],
)
def test_a_wrong_dtype_shows_both(folder: Folder, name: str, entry: Entry, expected: str) -> None:
    folder.tensors[name] = reshaped(entry, 512) if entry.dtype == "I32" else entry
    error = folder.refusal()
    assert error.what == f"`{name}` has the wrong dtype"
    assert (error.found, error.expected) == (entry.dtype, expected)
    assert error.hint == "use the official weights"


@pytest.mark.parametrize("name", [f"{WQ_A}.weight", f"{W1}.weight"])
@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_a_dequantised_matrix_is_called_by_its_name(folder: Folder, name: str, dtype: str) -> None:
    folder.tensors[name] = filled(dtype, 128, 256)
    del folder.tensors[name.replace("weight", "scale")]
    error = folder.refusal()
    assert error.what == f"`{name}` is a dequantised {dtype} matrix"
    assert "not a dequantised copy" in error.hint


def test_a_checkpoint_in_bfloat16_throughout_is_called_dequantised(folder: Folder) -> None:
    folder.tensors = {
        name: filled("BF16", *entry.shape)
        for name, entry in folder.tensors.items()
        if not name.endswith(".scale")
    }
    assert folder.refusal().what == f"`{WQ_A}.weight` is a dequantised BF16 matrix"


@pytest.mark.parametrize(("name", "dtype"), [("tiny-a", "fp4"), ("tiny-base", "fp8")])
def test_the_experts_format_is_read_off_the_weights(tmp_path: Path, name: str, dtype: str) -> None:
    folder = Folder(tmp_path / name, name)
    del folder.config["expert_dtype"]
    assert folder.open().config.expert_dtype == dtype


def test_without_experts_their_format_is_unknown(folder: Folder) -> None:
    del folder.config["expert_dtype"], folder.tensors[f"{W1}.weight"]
    assert folder.refusal().what == f"`{W1}.weight` is missing"


def test_dequantised_experts_of_unknown_format_are_called_so(folder: Folder) -> None:
    del folder.config["expert_dtype"]
    folder.tensors[f"{W1}.weight"] = filled("BF16", 128, 256)
    error = folder.refusal()
    assert error.what == f"`{W1}.weight` is a dequantised BF16 matrix"
    assert error.expected == "I8 or F8_E4M3"


def test_a_config_of_the_other_format_is_to_blame(folder: Folder, base: Folder) -> None:
    folder.config["expert_dtype"], base.config["expert_dtype"] = "fp8", "fp4"
    assert "says `expert_dtype` 'fp8', but these experts are 'fp4'" in folder.refusal().hint
    assert "says `expert_dtype` 'fp4', but these experts are 'fp8'" in base.refusal().hint


def f32_scales(tensors: Tensors, keep: Callable[[str], bool]) -> None:
    for name, entry in tensors.items():
        if name.endswith(".scale") and keep(name):
            tensors[name] = filled("F32", *entry.shape)


def test_float32_scales_are_accepted_throughout(base: Folder) -> None:
    f32_scales(base.tensors, lambda name: True)
    checkpoint = base.open()
    assert checkpoint.scale_dtype == "F32"
    assert checkpoint.array(f"{W1}.scale").dtype == "float32"


def test_float32_scales_stand_beside_fp4_experts(folder: Folder) -> None:
    f32_scales(folder.tensors, lambda name: ".ffn.experts." not in name)
    assert folder.open().scale_dtype == "F32"


def test_two_kinds_of_scales_are_refused(base: Folder) -> None:
    f32_scales(base.tensors, lambda name: name.startswith("layers.1."))
    error = base.refusal()
    assert error.what == "the checkpoint mixes two kinds of FP8 scales"
    assert "is F8_E8M0" in error.found
    assert "is F32" in error.found


def test_without_mtp_the_main_model_loads(folder: Folder) -> None:
    for name in [name for name in folder.tensors if name.startswith("mtp.")]:
        del folder.tensors[name]
    checkpoint = folder.open()
    assert not checkpoint.has_mtp
    assert checkpoint.unused == ()
    assert not any(name.startswith("mtp.") for name in checkpoint.tensors)


def test_half_an_mtp_block_is_refused(folder: Folder) -> None:
    del folder.tensors["mtp.0.e_proj.weight"]
    assert folder.refusal().what == "`mtp.0.e_proj.weight` is missing"


def test_copies_of_shared_tensors_are_unused(folder: Folder) -> None:
    for leaf in ("embed.weight", "head.weight"):
        folder.tensors[f"mtp.0.{leaf}"] = folder.tensors[leaf]
    checkpoint = folder.open()
    assert checkpoint.has_mtp
    assert [(tensor.name, tensor.reason) for tensor in checkpoint.unused] == [
        ("mtp.0.embed.weight", "a copy of the model's, which MTP shares"),
        ("mtp.0.head.weight", "a copy of the model's, which MTP shares"),
    ]


def test_an_mtp_block_the_config_does_not_announce_is_unused(folder: Folder) -> None:
    folder.config |= {"num_nextn_predict_layers": 0, "compress_ratios": [0, 4, 128, 4, 0]}
    checkpoint = folder.open()
    assert not checkpoint.has_mtp
    assert {tensor.reason for tensor in checkpoint.unused} == {"the config announces no MTP block"}


def dspark_config(config: dict[str, Any]) -> dict[str, Any]:
    return config | {
        "dspark_block_size": 5,
        "dspark_target_layer_ids": [2, 3, 4],
        "compress_ratios": [*config["compress_ratios"], 0, 0],
    }


@pytest.mark.parametrize("announced", [True, False])
def test_draft_heads_of_another_revision_are_unused(folder: Folder, announced: bool) -> None:
    if announced:
        folder.config = dspark_config(folder.config)
    folder.tensors |= {name: filled("BF16", 4, 4) for name in DRAFT_EXTRAS}
    checkpoint = folder.open()
    assert not checkpoint.has_mtp
    assert not any(name.startswith("mtp.") for name in checkpoint.tensors)
    assert {tensor.name for tensor in checkpoint.unused} == {
        name for name in folder.tensors if name.startswith("mtp.")
    }
    assert {tensor.reason for tensor in checkpoint.unused} == {
        "a draft head of another revision: the released MTP block has no `mtp.0.main_proj.weight`"
    }


def test_a_config_of_other_sizes_is_to_blame(folder: Folder) -> None:
    folder.config["hidden_size"] = 512
    error = folder.refusal()
    assert "has the wrong shape" in error.what
    assert error.hint == "use the config.json that ships with these weights"
