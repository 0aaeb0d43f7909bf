"""head: hidden states to logits, all float32.

    logits[b, r, v] = Σ_i float32(h[b, r, i])·float32(weight[v, i])

Axes: h [B, R, D], weight bf16 [V, D] -> logits float32 [B, R, V] in both numerics. The body goes through the
vocabulary in blocks, so that the widened weight never takes more than a block. Specification section 10.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ds4export.ops._body import FLOAT, INT64, T
from ds4export.ops._body_numerics import load
from ds4export.ops._cases import Gen
from ds4export.ops._define import BOUNDARY, F32, WEIGHT, Case, OpDef, Tolerance, new

VOCABULARY_BLOCK = 8192


def reference(h: Tensor, weight: Tensor) -> Tensor:
    return h.float() @ weight.float().T


def fake(h: Tensor, weight: Tensor) -> Tensor:
    return new(h, *h.shape[:2], weight.shape[0], dtype=torch.float32)


def body(h: T, weight: T) -> T:
    b = h.body
    x = load(h).reshape(-1, h.size_last())
    num_rows = weight.size(0)
    block = b.op("Min", num_rows, b.ints(VOCABULARY_BLOCK), dtype=INT64)
    count = (num_rows + block - 1) // block

    def step(i: T, _: tuple[T, ...]) -> tuple[tuple[T, ...], tuple[T, ...]]:
        # the last block ends at the last row and may repeat rows of the one before
        start = b.op("Min", i.reshape(1) * block, num_rows - block, dtype=INT64)
        rows = load(weight.slice(0, start, start + block))
        return (), (b.op("Gemm", rows, x, dtype=FLOAT, transB=1),)

    (stacked,) = b.loop(count, (), step)  # [blocks, block, rows of x]
    rows = b.arange(num_rows)
    last = (count - 1) * block
    shift = b.where(rows >= last, last - (num_rows - block), 0)
    flat = stacked.reshape(-1, x.size(0)).gather(rows + shift, 0)  # [V, rows of x]
    return flat.transpose(1, 0).reshape(h.size(0, 2), -1)


def _case(batch: int, rows: int, width: int, vocabulary: int) -> Case:
    def make(g: Gen) -> tuple[object, ...]:
        return g.x(batch, rows, width), g.bf16(vocabulary, width)

    return Case(f"{batch}x{rows}x{width}-vocabulary{vocabulary}", make)


OP = OpDef(
    name="head",
    schema="(Tensor h, Tensor weight) -> Tensor",
    inputs={"h": BOUNDARY, "weight": WEIGHT},
    outputs={"logits": F32},
    reference=reference,
    fake=fake,
    body=body,
    tolerance=Tolerance(2e-6, 2e-6, 1e-5, "float32 sums in another order"),
    cases=(_case(1, 1, 32, 40), _case(2, 3, 16, 8193), _case(1, 2, 8, 16384)),
)
