"""The ops that one step of the model calls, in order of the model (ds4export/model): layers of one kind are one line.

Owns which op is called how often and on how many rows; MTP blocks are left out, as they are from a plain decode step.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cache

from ds4export.checkpoint.names import expected_tensors
from ds4export.config import ModelConfig
from ds4export.roofline import linears, rows
from ds4export.roofline.attention import Chunk, attention, compress, indexer_topk
from ds4export.roofline.devices import Device
from ds4export.roofline.kernel import Kernel
from ds4export.roofline.layouts import Layout
from ds4export.roofline.linears import Matrix, linear
from ds4export.state import layer_state

ATTENTION_OPS = {0: "attention_window", 4: "attention_csa", 128: "attention_hca"}


@dataclass(frozen=True)
class OpCall:
    """`count` calls of an op with the same shapes, and the launches of one of them."""

    op: str
    what: str  # the module or layers that call it
    count: int
    kernels: tuple[Kernel, ...]


def step_ops(
    c: ModelConfig, chunk: Chunk, device: Device, layout: Layout = Layout.NATIVE
) -> list[OpCall]:
    """Every op call of a step; logits are made of the last new token of each sequence.

    The order of the calls does not depend on the layout, nor do those that see no cache.
    """
    kinds = Counter((c.ratio(i), c.is_hash(i)) for i in range(c.num_hidden_layers))
    ratios = Counter({ratio: 0 for ratio, _ in kinds})
    for (ratio, _), count in kinds.items():
        ratios[ratio] += count
    hashed = sum(count for (_, is_hash), count in kinds.items() if is_hash)
    calls = [OpCall("embed", "embed", 1, rows.embed(c, chunk.rows))]
    for ratio in sorted(ratios):
        calls += _attention_half(c, ratio, ratios[ratio], chunk, device, layout)
    calls += _feed_forward_half(c, c.num_hidden_layers, hashed, chunk.rows)
    calls += [
        OpCall("hc_head", "head", 1, rows.hc_head(c, chunk.batch)),
        OpCall("head", "head", 1, linears.head(c, chunk.batch)),
    ]
    return calls


def _attention_half(
    c: ModelConfig, ratio: int, count: int, chunk: Chunk, device: Device, layout: Layout
) -> list[OpCall]:
    d, heads, width, t = c.hidden_size, c.num_attention_heads, c.head_dim, chunk.rows
    z = c.o_groups * c.o_lora_rank
    grouped = Matrix(c.o_lora_rank, heads * width // c.o_groups, groups=c.o_groups, quantised=False)
    ops = [
        ("hc_pre", "attn", rows.hc_pre(c, t)),
        ("linear_fp8", "wq_a", linear(Matrix(c.q_lora_rank, d), t)),
        ("rms_norm", "q_norm", rows.rms_norm(c.q_lora_rank, t)),
        ("linear_fp8", "wq_b", linear(Matrix(heads * width, c.q_lora_rank), t)),
        ("query_heads", "q", rows.query_heads(c, t, device)),
        ("linear_fp8", "wkv", linear(Matrix(width, d), t)),
        ("kv_row", "kv", rows.kv_row(c, t)),
    ]
    if ratio:
        name = "compress_csa" if ratio == 4 else "compress_hca"
        ops.append((name, "compressor", compress(c, width, ratio, chunk, layout.kv_bytes(c))))
    if ratio == 4:
        ops += _indexer(c, chunk, device, layout)
    ops += [
        (ATTENTION_OPS[ratio], "attn", attention(c, ratio, chunk, device, layout)),
        ("grouped_linear", "wo_a", linear(grouped, t)),
        ("linear_fp8", "wo_b", linear(Matrix(d, z), t)),
        ("hc_post", "attn", rows.hc_post(c, t)),
    ]
    return [OpCall(op, f"ratio {ratio}: {what}", count, kernels) for op, what, kernels in ops]


def _indexer(
    c: ModelConfig, chunk: Chunk, device: Device, layout: Layout
) -> list[tuple[str, str, tuple[Kernel, ...]]]:
    heads, width, t, entry = c.index_n_heads, c.index_head_dim, chunk.rows, layout.key_bytes(c)
    weights = Matrix(heads, c.hidden_size, bits=16, quantised=False)
    return [
        ("linear_fp8", "indexer.wq_b", linear(Matrix(heads * width, c.q_lora_rank), t)),
        ("index_query", "indexer.q", rows.index_query(c, t, device)),
        ("compress_index", "indexer.compressor", compress(c, width, 4, chunk, entry)),
        ("linear_bf16", "indexer.weights_proj", linear(weights, t)),
        ("indexer_topk", "indexer", indexer_topk(c, chunk, device, layout)),
    ]


def _feed_forward_half(c: ModelConfig, layers: int, hashed: int, tokens: int) -> list[OpCall]:
    return [
        OpCall("hc_pre", "ffn", layers, rows.hc_pre(c, tokens)),
        OpCall("route_hash", "gate", hashed, linears.route_hash(c, tokens)),
        OpCall("route_scores", "gate", layers - hashed, linears.route_scores(c, tokens)),
        OpCall("moe", "experts", layers, linears.moe(c, tokens)),
        OpCall("shared_expert", "shared_experts", layers, linears.shared_expert(c, tokens)),
        OpCall("moe_combine", "ffn", layers, rows.moe_combine(c, tokens)),
        OpCall("hc_post", "ffn", layers, rows.hc_post(c, tokens)),
    ]


@cache
def weight_bytes(c: ModelConfig) -> int:
    """All tensors of the checkpoint that a step may need: without the MTP blocks."""
    specs = expected_tensors(c).values()
    return sum(spec.nbytes for spec in specs if not spec.name.startswith("mtp."))


def state_bytes(c: ModelConfig, context: int, layout: Layout = Layout.NATIVE) -> int:
    """State of one sequence of `context` tokens as this package keeps it: cache rows, and pending rows in float32."""
    return sum(
        layout.state_bytes(c, spec)
        for i in range(c.num_hidden_layers)
        for spec in layer_state(c, c.ratio(i), context)
    )
