"""One checkpoint in every dialect: the same tensors under the official names, byte for byte."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from ds4export.checkpoint import open_checkpoint
from ds4export.checkpoint.dialects import official_name
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
from tests.kit.dialects import hf_config, hf_module_names, hf_saved_names

NAMES = ("tiny-a", "tiny-c", "tiny-base")


def prefixed(tensors: Tensors, num_experts: int) -> Tensors:
    return {f"model.{name}": entry for name, entry in tensors.items()}


def saved(tensors: Tensors, num_experts: int) -> Tensors:
    return hf_saved_names(tensors)


def assert_same_tensors(folder: Path, original: Tensors) -> None:
    with open_checkpoint(folder) as checkpoint:
        main = {name for name in original if checkpoint.has_mtp or not name.startswith("mtp.")}
        assert set(checkpoint.tensors) == main
        for name, ref in checkpoint.tensors.items():
            entry = original[name]
            assert (ref.name, ref.dtype, ref.shape) == (name, entry.dtype, entry.shape)
            assert checkpoint.array(name).tobytes() == entry.data, name


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("rename", [prefixed, hf_module_names, saved])
def test_dialects_read_as_official(
    tmp_path: Path, name: str, rename: Callable[[Tensors, int], Tensors]
) -> None:
    config, tensors = read_config(name), read_tensors(recorded(name))
    renamed = rename(tensors, config["n_routed_experts"])
    assert not set(renamed) & (set(tensors) - {"head.weight"})
    folder = write_checkpoint(tmp_path / "dialect", renamed, config)
    assert_same_tensors(folder, tensors)
    with open_checkpoint(folder) as checkpoint:
        assert checkpoint.has_mtp == (rename is prefixed)
        assert not checkpoint.unused


@pytest.mark.parametrize("name", NAMES)
def test_names_and_config_of_transformers_go_together(tmp_path: Path, name: str) -> None:
    config, tensors = read_config(name), read_tensors(recorded(name))
    renamed = hf_module_names(tensors, config["n_routed_experts"])
    assert_same_tensors(write_checkpoint(tmp_path / "hf", renamed, hf_config(config)), tensors)


def test_stacked_experts_are_byte_ranges_of_one_tensor(tmp_path: Path) -> None:
    config, tensors = read_config("tiny-a"), read_tensors(recorded("tiny-a"))
    folder = write_checkpoint(tmp_path / "hf", hf_module_names(tensors, 8), config)
    with open_checkpoint(folder) as checkpoint:
        refs = [
            checkpoint.tensors[f"layers.0.ffn.experts.{expert}.{part}.weight"]
            for expert in range(8)
            for part in ("w1", "w3")
        ]
    assert all(b.offset == a.offset + a.nbytes for a, b in pairwise(refs))


@pytest.mark.parametrize(
    ("stored", "official"),
    [
        ("embed.weight", "embed.weight"),
        ("lm_head.weight", "head.weight"),
        ("model.hc_head.hc_fn", "hc_head_fn"),
        ("model.layers.3.attn.norm.weight", "layers.3.attn.kv_norm.weight"),
        ("layers.3.attn.compressor.norm.weight", "layers.3.attn.compressor.norm.weight"),
        (
            "layers.3.self_attn.compressor.indexer.weights_proj.weight",
            "layers.3.attn.indexer.weights_proj.weight",
        ),
        ("model.mtp.0.attn.wkv.weight_scale_inv", "mtp.0.attn.wkv.scale"),
        ("mtp.0.hc_attn_scale", "mtp.0.hc_attn_scale"),
        ("model.layers.3.attn_hc.scale", "layers.3.hc_attn_scale"),
        ("something.else", "something.else"),
        ("layers.3.", "layers.3."),
        ("", ""),
    ],
)
def test_single_names(stored: str, official: str) -> None:
    assert official_name(stored) == official


def test_one_tensor_under_two_names_is_refused(tmp_path: Path) -> None:
    tensors = read_tensors(recorded("tiny-a"))
    tensors["model.embed_tokens.weight"] = tensors["embed.weight"]
    folder = write_checkpoint(tmp_path / "twice", tensors, read_config("tiny-a"))
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(folder)
    assert caught.value.what == "`embed.weight` is there twice, under two names"
    assert caught.value.found == "`embed.weight` and `model.embed_tokens.weight`"


STACK = "model.layers.0.mlp.experts.gate_up_proj"


@pytest.mark.parametrize(
    "damage",
    [
        lambda entry: reshaped(entry, 4, 512, 128),
        lambda entry: reshaped(entry, 8 * 256, 128),
        lambda entry: reshaped(entry, 8, 255, 1),
        lambda entry: filled("I8", 8, 0, 128),
    ],
)
def test_stacks_of_the_wrong_shape_are_refused(
    tmp_path: Path, damage: Callable[[Entry], Entry]
) -> None:
    renamed = hf_module_names(read_tensors(recorded("tiny-a")), 8)
    entry = damage(renamed[STACK])
    size = len(filled("I8", *entry.shape).data)
    renamed[STACK] = replace(entry, data=entry.data[:size])
    folder = write_checkpoint(tmp_path / "hf", renamed, read_config("tiny-a"))
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(folder)
    assert caught.value.what == f"stacked experts `{STACK}` have the wrong shape"
    assert caught.value.expected == "[8 experts, 2 x rows, columns]"


def test_scale_tiles_that_span_two_matrices_are_refused(tmp_path: Path) -> None:
    config = read_config("tiny-base") | {"moe_intermediate_size": 192}
    renamed = hf_module_names(read_tensors(recorded("tiny-base")), 4)
    name = f"{STACK}_scale_inv"
    renamed[name] = filled("F8_E8M0", 4, 4, 1)
    folder = write_checkpoint(tmp_path / "hf", renamed, config)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(folder)
    assert caught.value.what == f"`{name}` has scale tiles that span w1 and w3"
    assert (caught.value.found, caught.value.expected) == (
        "192 rows each",
        "a multiple of 128 rows",
    )
