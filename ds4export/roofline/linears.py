"""Ops that multiply rows of activations by matrices of the checkpoint: linears, router, experts, head.

Owns their bytes, operations and launches. The constants are those of the launchers (plugins/common/linear.cuh,
stream_rows.cuh, tile_rows.cuh, plugins/moe); tests/roofline reads them there.
"""

from __future__ import annotations

from dataclasses import dataclass

from ds4export.checkpoint.names import FP4_GROUP, TILE
from ds4export.config import ModelConfig
from ds4export.roofline.kernel import (
    BF16,
    F32,
    INT64,
    Kernel,
    Unit,
    ceil_div,
    expected_hit,
    expected_tiles,
)

STREAM_ROWS, STREAM_TOKENS, STREAM_WARPS = 16, 8, 8
TILE_ROWS, TILE_TOKENS, EXPERT_TILE = 128, 128, 64
MOST_STREAMED_TOKENS, MOST_STREAMED_PER_EXPERT = 32, 4
SHARED_WITHOUT_ASKING = 48 << 10
QUANTISE_WARPS, PREPARE_WARPS, COMBINE_THREADS, SELECT_TOKENS = 4, 4, 128, 4
A8_BLOCK, X_GAP, LANES = 128, 8, 32


@dataclass(frozen=True)
class Matrix:
    """`count` matrices [rows, columns] of `groups` groups, with `bits` a value."""

    rows: int
    columns: int
    bits: int = 8
    count: int = 1
    groups: int = 1
    result: int = BF16  # bytes of a value of y
    quantised: bool = True  # activations go through A8(128) first

    @property
    def num_bytes(self) -> float:
        """Of the values and, for e4m3, of the scales of their tiles."""
        values = self.groups * self.rows * self.columns * self.bits / 8
        tiles = ceil_div(self.groups * self.rows, TILE) * ceil_div(self.columns, TILE)
        return self.count * (values + (tiles if self.bits == 8 else 0))


def linear(m: Matrix, tokens: int) -> tuple[Kernel, ...]:
    """launch_linear: x [tokens, groups·columns] bf16 -> y [tokens, groups·rows]."""
    x = tokens * m.groups * m.columns * BF16
    y = tokens * m.groups * m.rows * m.result
    flops = 2 * tokens * m.count * m.groups * m.rows * m.columns
    shared = tokens * (m.columns + X_GAP) * BF16 + STREAM_WARPS * m.count * 4 * LANES * F32
    at_once = m.quantised and tokens <= STREAM_TOKENS and shared <= SHARED_WITHOUT_ASKING
    before = (quantise(tokens, m.columns),) if m.quantised and not at_once else ()
    if tokens <= MOST_STREAMED_TOKENS:
        per_block = STREAM_TOKENS * (1 if tokens <= STREAM_TOKENS else 4)
        name, rows = "stream", STREAM_ROWS
    else:
        per_block, name, rows = TILE_TOKENS, "tiles", TILE_ROWS // m.count
    row_blocks, token_blocks = ceil_div(m.rows, rows), ceil_div(tokens, per_block)
    padded = token_blocks * per_block / tokens * row_blocks * rows / m.rows
    product = Kernel(
        name,
        row_blocks * token_blocks * m.groups,
        weights=m.num_bytes,
        activations=y + (0 if before else x),
        flops=flops,
        unit=Unit.FP8 if m.quantised else Unit.BF16,
        codes=m.quantised and name == "tiles",
        executed=flops * padded,
        loaded=token_blocks * m.num_bytes + row_blocks * x + y,
        again=(((token_blocks - 1) * m.num_bytes, m.num_bytes / m.groups), (x if before else 0, x)),
    )
    return (*before, product)


def quantise(tokens: int, columns: int) -> Kernel:
    """A8(128) of x [tokens, columns] into a workspace."""
    x = tokens * columns * BF16
    return Kernel(
        "quantise", ceil_div(tokens * ceil_div(columns, A8_BLOCK), QUANTISE_WARPS),
        activations=x, flops=4 * tokens * columns, loaded=2 * x, again=((x, x),),
    )  # fmt: skip


def shared_expert(c: ModelConfig, tokens: int) -> tuple[Kernel, ...]:
    """w1 and w3 side by side, then w2; h lies in the workspace between them."""
    d, i = c.hidden_size, c.moe_intermediate_size * c.n_shared_experts
    return (*linear(Matrix(i, d, count=2), tokens), *linear(Matrix(d, i), tokens))


def route_scores(c: ModelConfig, tokens: int) -> tuple[Kernel, ...]:
    """The gate's product in float32, then the k largest of s + bias."""
    experts, k = c.n_routed_experts, c.num_experts_per_tok
    gate = Matrix(experts, c.hidden_size, bits=16, result=F32, quantised=False)
    z = tokens * experts * F32
    out = tokens * k * (F32 + INT64)
    select = Kernel(
        "select", ceil_div(tokens, SELECT_TOKENS), weights=experts * F32, activations=out,
        flops=tokens * experts * (10 + k), loaded=z + out, again=((z, z),),
    )  # fmt: skip
    return (*linear(gate, tokens), select)


def route_hash(c: ModelConfig, tokens: int) -> tuple[Kernel, ...]:
    """Only the gate rows of the experts that the table names; ids and rows of the table come with them."""
    d, k = c.hidden_size, c.num_experts_per_tok
    hit = expected_hit(c.n_routed_experts, k, tokens)
    out = tokens * k * (F32 + INT64)
    return (
        Kernel(
            "hash", tokens,
            weights=hit * d * BF16 + tokens * k * INT64,
            activations=tokens * (d * BF16 + INT64) + out,
            flops=2 * tokens * k * d,
            loaded=tokens * (2 * k * d * BF16 + d * BF16) + out,
        ),
    )  # fmt: skip


def expert_bytes(c: ModelConfig) -> float:
    """One routed expert as stored: three matrices and their scales."""
    values = 3 * c.moe_intermediate_size * c.hidden_size
    if c.expert_dtype == "fp4":
        return values / 2 + values / FP4_GROUP
    return values + 3 * ceil_div(c.moe_intermediate_size, TILE) * ceil_div(c.hidden_size, TILE)


def moe(c: ModelConfig, tokens: int) -> tuple[Kernel, ...]:
    """prepare, up, requantise, down, combine; every tile reads its expert's weights."""
    d, i, k = c.hidden_size, c.moe_intermediate_size, c.num_experts_per_tok
    experts, pairs = c.n_routed_experts, tokens * c.num_experts_per_tok
    streamed = pairs <= MOST_STREAMED_PER_EXPERT * experts
    per_tile = STREAM_TOKENS if streamed else EXPERT_TILE
    hit = expected_hit(experts, k, tokens)
    tiles = expected_tiles(experts, k, tokens, per_tile)
    x, h, y = tokens * d * BF16, pairs * i * BF16, pairs * d * BF16
    prepare = Kernel(
        "prepare", ceil_div(experts, PREPARE_WARPS) + ceil_div(tokens * ceil_div(d, A8_BLOCK), PREPARE_WARPS),
        weights=experts * INT64, activations=x + pairs * (INT64 + F32), flops=4 * tokens * d,
        loaded=2 * x + experts * pairs * INT64, again=((x, x),),
    )  # fmt: skip

    def half(name: str, count: int, rows: int, columns: int, source: float, out: float) -> Kernel:
        own = expert_bytes(c) * count / 3
        per_block = STREAM_ROWS if streamed else TILE_ROWS // count
        row_blocks = ceil_div(rows, per_block)
        flops = 2 * pairs * count * rows * columns
        read = pairs * columns * BF16
        return Kernel(
            name, row_blocks * tiles, weights=hit * own, flops=flops, unit=Unit.FP8, codes=not streamed,
            executed=flops * tiles * per_tile / pairs,
            loaded=tiles * own + row_blocks * read + out,
            again=(((tiles - hit) * own, own), (source, source), (out, out)),
        )  # fmt: skip

    requantise = Kernel(
        "requantise", ceil_div(pairs * ceil_div(i, A8_BLOCK), QUANTISE_WARPS),
        flops=4 * pairs * i, loaded=2 * h, again=((2 * h, h),),
    )  # fmt: skip
    combine = Kernel(
        "combine", tokens * ceil_div(d, COMBINE_THREADS), activations=tokens * d * F32,
        flops=pairs * d, loaded=y + tokens * d * F32, again=((y, y),),
    )  # fmt: skip
    up = half("up", 2, i, d, x, h)
    return (prepare, up, requantise, half("down", 1, d, i, h, y), combine)


def head(c: ModelConfig, rows: int) -> tuple[Kernel, ...]:
    """hidden states [rows, D] -> logits float32."""
    m = Matrix(c.vocab_size, c.hidden_size, bits=16, result=F32, quantised=False)
    return linear(m, rows)
