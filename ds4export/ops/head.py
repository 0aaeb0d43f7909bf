"""head: hidden states to logits, all float32.

    logits[b, r, v] = Σ_i float32(h[b, r, i])·float32(weight[v, i])

Axes: h [B, R, D], weight bf16 [V, D] -> logits float32 [B, R, V] in both numerics. The body goes through the
vocabulary in blocks, so that the widened weight never takes more than a block of it. Specification section 10.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ds4export.ops._body import T
from ds4export.ops._body_numerics import in_rows, linear_bf16, load
from ds4export.ops._cases import Gen
from ds4export.ops._define import BOUNDARY, F32, WEIGHT, Case, OpDef, Tolerance, new


def reference(h: Tensor, weight: Tensor) -> Tensor:
    return h.float() @ weight.float().T


def fake(h: Tensor, weight: Tensor) -> Tensor:
    return new(h, *h.shape[:2], weight.shape[0], dtype=torch.float32)


def body(h: T, weight: T) -> T:
    return in_rows(load(h), lambda rows: linear_bf16(rows, weight), weight.size(0))


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
    cases=(_case(1, 1, 32, 40), _case(2, 3, 256, 8193), _case(1, 2, 512, 4096)),
)
