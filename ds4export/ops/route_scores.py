"""route_scores: experts by score.

    s = sqrt(softplus(gate·x));  indices = top-k of s + bias, lowest index first among equals;  w = s[ind]/Σ·scale

Axes: x [B, T, D], gate bf16 [E, D], bias float32 [E] -> weights float32 [B, T, k], indices INT64 [B, T, k] by
falling s + bias. The maths stands in `_route`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ds4export.ops._body import FLOAT, INT64, T
from ds4export.ops._cases import Gen
from ds4export.ops._define import BOUNDARY, F32, WEIGHT, Case, OpDef, Tolerance
from ds4export.ops._route import (
    OUTPUTS,
    body_normalised,
    body_scores,
    fake_route,
    normalised,
    scores,
)


def reference(x: Tensor, gate: Tensor, bias: Tensor, k: int, scale: float) -> tuple[Tensor, Tensor]:
    s = scores(x, gate)
    order = torch.sort(s + bias, dim=-1, descending=True, stable=True)  # stable: lowest first
    indices = order.indices[..., :k].contiguous()
    return normalised(s, indices, scale), indices


def fake(x: Tensor, gate: Tensor, bias: Tensor, k: int, scale: float) -> tuple[Tensor, Tensor]:
    return fake_route(x, k)


def body(x: T, gate: T, bias: T, *, k: int, scale: float) -> tuple[T, T]:
    s = body_scores(x, gate)
    _, indices = x.body.ops("TopK", s + bias, x.body.ints(k), dtypes=(FLOAT, INT64))
    return body_normalised(s, indices, scale), indices


def _case(
    batch: int, tokens: int, experts: int, k: int, *, equal: bool = False, gain: float = 1.0
) -> Case:
    def make(g: Gen) -> tuple[object, ...]:
        gate, bias = g.bf16(experts, 24), g.f32(experts) * 0.1
        if equal:
            gate, bias = torch.zeros_like(gate), torch.zeros_like(bias)
        return g.x(batch, tokens, 24) * gain, gate, bias, k, 1.5

    return Case(f"{batch}x{tokens}-top{k}of{experts}{'-equal' if equal else ''}-gain{gain}", make)


OP = OpDef(
    name="route_scores",
    schema="(Tensor x, Tensor gate, Tensor bias, int k, float scale) -> (Tensor, Tensor)",
    inputs={"x": BOUNDARY, "gate": WEIGHT, "bias": F32},
    outputs=OUTPUTS,
    reference=reference,
    fake=fake,
    body=body,
    tolerance=Tolerance(
        2e-6,
        2e-6,
        1e-5,
        "float32 sums in another order; indices equal unless scores are within 1e-6",
    ),
    cases=(
        _case(1, 1, 8, 2),
        _case(2, 5, 11, 6),
        _case(1, 3, 8, 3, equal=True),
        _case(1, 4, 8, 2, gain=40.0),
    ),
)
