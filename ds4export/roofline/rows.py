"""Ops that go through the rows of each token once: streams, norms, heads, caches of one row.

Owns their bytes, operations and launches; constants as in plugins/common/hyper_connection.cuh and the op's own folder.
"""

from __future__ import annotations

from ds4export.config import ModelConfig
from ds4export.roofline.devices import Device
from ds4export.roofline.kernel import BF16, F32, INT64, Kernel, ceil_div

MIX_SLICE, MIX_TOKENS = 1024, 4
PACK, WARP_ROWS, WARPS, KV_ROWS, INDEX_LANES = 8, 8, 8, 4, 32


def embed(c: ModelConfig, tokens: int) -> tuple[Kernel, ...]:
    """A row of the table, written as N equal streams."""
    row = c.hidden_size * BF16
    return (
        Kernel(
            "look_up", ceil_div(tokens * c.hidden_size, PACK * 256), weights=tokens * row,
            activations=tokens * (c.hc_mult * row + INT64), loaded=tokens * (1 + c.hc_mult) * row,
        ),
    )  # fmt: skip


def _mixes(c: ModelConfig, tokens: int, outputs: int) -> Kernel:
    """partial_mixes: fn·x by slices; fn is read again for every four tokens."""
    length = c.hc_mult * c.hidden_size
    slices, tiles = ceil_div(length, MIX_SLICE), ceil_div(tokens, MIX_TOKENS)
    fn, x = outputs * length * F32, tokens * length * BF16
    partial = tokens * slices * (outputs + 1) * F32
    return Kernel(
        "partial_mixes", slices * tiles, weights=fn, activations=x,
        flops=2 * tokens * length * (outputs + 1),
        loaded=tiles * fn + x * min(4, outputs) + partial,
        again=(((tiles - 1) * fn, fn), (partial, partial)),
    )  # fmt: skip


def hc_pre(c: ModelConfig, tokens: int) -> tuple[Kernel, ...]:
    """Mixing logits, then gates, Sinkhorn and the normed sum of the streams, which are read once more."""
    n, d = c.hc_mult, c.hidden_size
    outputs = (2 + n) * n
    x, partial = tokens * n * d * BF16, tokens * ceil_div(n * d, MIX_SLICE) * (outputs + 1) * F32
    out = tokens * (d * BF16 + (n + n * n) * F32)
    finish = Kernel(
        "finish", tokens, weights=d * BF16 + (outputs + 3) * F32, activations=out,
        flops=tokens * (d * (2 * n + 4) + c.hc_sinkhorn_iters * 4 * n * n),
        loaded=x + partial + out, again=((x, x), (partial, partial)),
    )  # fmt: skip
    return (_mixes(c, tokens, outputs), finish)


def hc_head(c: ModelConfig, rows: int) -> tuple[Kernel, ...]:
    """As hc_pre, for the rows that become logits, without Sinkhorn."""
    n, d = c.hc_mult, c.hidden_size
    x = rows * n * d * BF16
    finish = Kernel(
        "finish", rows, weights=d * BF16 + (n + 1) * F32, activations=rows * d * BF16,
        flops=rows * d * (2 * n + 4), loaded=x + rows * d * BF16, again=((x, x),),
    )  # fmt: skip
    return (_mixes(c, rows, n), finish)


def hc_post(c: ModelConfig, tokens: int) -> tuple[Kernel, ...]:
    """y and the streams before the sublayer -> the streams after it."""
    n, d = c.hc_mult, c.hidden_size
    moved = tokens * ((2 * n + 1) * d * BF16 + (n + n * n) * F32)
    blocks = tokens * ceil_div(d, PACK * 128)
    return (
        Kernel("mix", blocks, activations=moved, flops=tokens * d * 2 * n * (n + 1), loaded=moved),
    )


def rms_norm(width: int, rows: int) -> tuple[Kernel, ...]:
    """Rows [rows, width] to root mean square 1, times a weight."""
    moved = 2 * rows * width * BF16
    blocks = ceil_div(rows, WARP_ROWS) if width <= 1024 else rows
    return (
        Kernel("norm", blocks, weights=width * BF16, activations=moved, flops=4 * rows * width, loaded=1.5 * moved),
    )  # fmt: skip


def moe_combine(c: ModelConfig, tokens: int) -> tuple[Kernel, ...]:
    """The routed sum (float32) and the shared expert -> one bf16 row."""
    moved = tokens * c.hidden_size * (F32 + 2 * BF16)
    return (
        Kernel(
            "combine", ceil_div(tokens * c.hidden_size, 256), activations=moved, flops=tokens * c.hidden_size,
            loaded=moved,
        ),
    )  # fmt: skip


def query_heads(c: ModelConfig, tokens: int, device: Device) -> tuple[Kernel, ...]:
    """Every head of a token normed and turned."""
    heads = c.num_attention_heads
    return _turned("rotate_heads", heads * c.head_dim, tokens, _slices(heads, tokens, device), 8)


def kv_row(c: ModelConfig, tokens: int) -> tuple[Kernel, ...]:
    """The row that attention reads: normed, turned, rounded."""
    per_row = 1 / KV_ROWS
    return _turned("finish", c.head_dim, tokens, per_row, 12, weights=c.head_dim * BF16)


def index_query(c: ModelConfig, tokens: int, device: Device) -> tuple[Kernel, ...]:
    """Every index head of a token turned, transformed, rounded."""
    groups = ceil_div(c.index_n_heads, INDEX_LANES * PACK // c.index_head_dim)
    slices = _slices(groups, tokens, device)
    return _turned("rotate_and_quantise", c.index_n_heads * c.index_head_dim, tokens, slices, 20)


def _slices(heads: int, tokens: int, device: Device) -> int:
    return max(1, min(device.multiprocessors // tokens, ceil_div(heads, WARPS)))


def _turned(
    name: str, width: int, tokens: int, blocks: float, flops: int, weights: float = 0
) -> tuple[Kernel, ...]:
    """Rows [tokens, width] read and written; `blocks` of a row, `flops` of a value."""
    moved = 2 * tokens * width * BF16
    return (
        Kernel(
            name, ceil_div(tokens * blocks, 1), weights=weights, activations=moved, flops=tokens * width * flops,
            loaded=moved,
        ),
    )  # fmt: skip
