"""Names on disk to official names: three dialects and the official one, told apart per tensor.

Owns the map. Refuses only stacks it cannot cut: a name no rule knows stays as it is and is reported
as extra later.
- official under a `model.` prefix;
- HF module names, with the experts of a layer stacked in two tensors, read as byte ranges;
- what HF's `save_pretrained` writes: official leaf names under `model.`, except the embedding,
  `hc_head`, and `attn.kv_norm`, which its reverse rule turns into `attn.norm`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

from ds4export.checkpoint.names import TILE
from ds4export.checkpoint.shard import TensorRef
from ds4export.config import ModelConfig
from ds4export.errors import CheckpointError

TOP_STEMS = {
    "embed_tokens": "embed",
    "lm_head": "head",
    "hc_head.hc_fn": "hc_head_fn",
    "hc_head.hc_base": "hc_head_base",
    "hc_head.hc_scale": "hc_head_scale",
}
LAYER_STEMS = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    **{
        f"{part}_hc.{leaf}": f"hc_{part}_{leaf}"
        for part in ("attn", "ffn")
        for leaf in ("fn", "base", "scale")
    },
    "attn.norm": "attn.kv_norm",
    "self_attn.sinks": "attn.attn_sink",
    "self_attn.q_a_proj": "attn.wq_a",
    "self_attn.q_a_norm": "attn.q_norm",
    "self_attn.q_b_proj": "attn.wq_b",
    "self_attn.kv_proj": "attn.wkv",
    "self_attn.kv_norm": "attn.kv_norm",
    "self_attn.o_a_proj": "attn.wo_a",
    "self_attn.o_b_proj": "attn.wo_b",
    **{
        f"self_attn.compressor.{part}{leaf}": f"attn.{part}compressor.{name}"
        for part in ("", "indexer.")
        for leaf, name in (
            ("kv_proj", "wkv"),
            ("gate_proj", "wgate"),
            ("position_bias", "ape"),
            ("kv_norm", "norm"),
        )
    },
    "self_attn.compressor.indexer.q_b_proj": "attn.indexer.wq_b",
    "self_attn.compressor.indexer.scorer.weights_proj": "attn.indexer.weights_proj",
    "self_attn.compressor.indexer.weights_proj": "attn.indexer.weights_proj",
    "mlp.gate": "ffn.gate",
    "mlp.gate.e_score_correction_bias": "ffn.gate.bias",
    "mlp.shared_experts.gate_proj": "ffn.shared_experts.w1",
    "mlp.shared_experts.up_proj": "ffn.shared_experts.w3",
    "mlp.shared_experts.down_proj": "ffn.shared_experts.w2",
}
SUFFIXES = {"weight_scale_inv": "scale"}

_LAYER = re.compile(r"((?:layers|mtp)\.\d+\.)(.+)", re.DOTALL)
_STACKED = re.compile(r"(?:mlp|ffn)\.experts\.(gate_up_proj|down_proj)(_scale_inv)?")
# Rows of one stacked expert, in order.
_STACKS = {"gate_up_proj": ("w1", "w3"), "down_proj": ("w2",)}


def official_name(name: str) -> str:
    """The official name of a tensor that is not stacked."""
    name = name.removeprefix("model.")
    match = _LAYER.fullmatch(name)
    prefix, rest = match.groups() if match else ("", name)
    stems = LAYER_STEMS if match else TOP_STEMS
    if rest in stems:
        return prefix + stems[rest]
    stem, dot, suffix = rest.rpartition(".")
    return prefix + stems.get(stem, stem) + dot + SUFFIXES.get(suffix, suffix)


def official_refs(ref: TensorRef, config: ModelConfig) -> Iterator[TensorRef]:
    """A tensor under its official name; a stacked one as one byte range per expert matrix."""
    match = _LAYER.fullmatch(ref.name.removeprefix("model."))
    stacked = _STACKED.fullmatch(match[2]) if match else None
    if match is None or stacked is None:
        yield replace(ref, name=official_name(ref.name))
        return
    names, kind = _STACKS[stacked[1]], "scale" if stacked[2] else "weight"
    rows = _stacked_rows(ref, len(names), config)
    _check_tiles_split(ref, len(names), kind, config)
    nbytes = ref.nbytes // (config.n_routed_experts * len(names))
    for index in range(config.n_routed_experts * len(names)):
        expert, part = divmod(index, len(names))
        yield TensorRef(
            f"{match[1]}ffn.experts.{expert}.{names[part]}.{kind}",
            ref.dtype,
            (rows, ref.shape[2]),
            ref.shard,
            ref.offset + index * nbytes,
            nbytes,
        )


def _stacked_rows(ref: TensorRef, parts: int, config: ModelConfig) -> int:
    experts, shape = config.n_routed_experts, ref.shape
    if len(shape) != 3 or shape[0] != experts or shape[1] % parts or not ref.nbytes:
        raise CheckpointError(
            f"stacked experts `{ref.name}` have the wrong shape",
            where=ref.shard,
            found=list(shape),
            expected=f"[{experts} experts, {parts} x rows, columns]",
        )
    return shape[1] // parts


def _check_tiles_split(ref: TensorRef, parts: int, kind: str, config: ModelConfig) -> None:
    """Tile scales of w1 and w3 are separate only if no tile spans both."""
    rows = config.moe_intermediate_size
    tiled = kind == "scale" and ref.shape[1] != parts * rows
    if parts == 2 and tiled and rows % TILE:
        raise CheckpointError(
            f"`{ref.name}` has scale tiles that span w1 and w3",
            where=ref.shard,
            found=f"{rows} rows each",
            expected=f"a multiple of {TILE} rows",
        )
