"""hc_head: the streams of chosen rows to one normed hidden state.

    q = (fn · flatten(x)) · rsqrt(mean(x²) + rms_eps)        [N]
    h = rms(Σ_n (sigmoid(q[n]·scale[0] + base[n]) + hc_eps)·x[n], norm)

Axes: x [B, T, N, D], rows INT64 [B, R] of token indices (-1: none, its output is row 0's and means nothing) ->
h [B, R, D]. Choosing rows first keeps a long prefill from computing logits that nobody asked for.
Specification sections 3 and 10.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ds4export.ops._body import T
from ds4export.ops._body_numerics import load, rounded, store
from ds4export.ops._body_numerics import rms as body_rms
from ds4export.ops._cases import Gen
from ds4export.ops._define import BOUNDARY, F32, INTS, WEIGHT, Case, OpDef, Tolerance, new
from ds4export.ops._numerics import rms, stored
from ds4export.ops._numerics import rounded as torch_rounded
from ds4export.ops.hc_pre import body_mixes, mixes


def reference(
    x: Tensor,
    fn: Tensor,
    base: Tensor,
    scale: Tensor,
    norm: Tensor,
    rows: Tensor,
    hc_eps: float,
    rms_eps: float,
) -> Tensor:
    x = x[torch.arange(len(x))[:, None], rows.clamp_min(0)]  # [B, R, N, D]
    weight = torch.sigmoid(mixes(x, fn, rms_eps) * scale[0] + base) + hc_eps
    h = torch_rounded((weight.unsqueeze(-1) * x.float()).sum(2), x)
    return stored(rms(h, norm, rms_eps), x)


def fake(
    x: Tensor, fn: Tensor, base: Tensor, scale: Tensor, norm: Tensor, rows: Tensor, *_: object
) -> Tensor:
    return new(x, *rows.shape, x.shape[3])


def body(x: T, fn: T, base: T, scale: T, norm: T, rows: T, *, hc_eps: float, rms_eps: float) -> T:
    b = x.body
    at = rows.clip(0, None).unsqueeze(2)
    x = load(b.op("GatherND", x, at, dtype=x.dtype, batch_dims=1))
    weight = (body_mixes(x, fn, rms_eps) * scale + base).unary("Sigmoid") + hc_eps
    h = rounded((weight.unsqueeze(3) * x).sum(2, keepdims=False))
    return store(body_rms(h, norm, rms_eps))


def _case(batch: int, tokens: int, width: int, rows: int) -> Case:
    def make(g: Gen) -> tuple[object, ...]:
        x = g.x(batch, tokens, 4, width)
        fn, base, scale = g.f32(4, 4 * width) * 0.1, g.f32(4), g.f32(1)
        return x, fn, base, scale, g.bf16(width), g.integers((batch, rows), 0, tokens), 1e-6, 1e-6

    return Case(f"{batch}x{tokens}x{width}-rows{rows}", make)


OP = OpDef(
    name="hc_head",
    schema="(Tensor x, Tensor fn, Tensor base, Tensor scale, Tensor norm, Tensor rows, float hc_eps, "
    "float rms_eps) -> Tensor",
    inputs={"x": BOUNDARY, "fn": F32, "base": F32, "scale": F32, "norm": WEIGHT, "rows": INTS},
    outputs={"h": BOUNDARY},
    reference=reference,
    fake=fake,
    body=body,
    tolerance=Tolerance(
        2e-6, 3e-4, 8e-3, "float32 sums in another order; one bf16 ulp where they round apart"
    ),
    cases=(_case(1, 1, 32, 1), _case(2, 5, 48, 3)),
)
