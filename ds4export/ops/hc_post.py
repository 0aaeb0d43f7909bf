"""hc_post: the mix after a sublayer.

    out[j, :] = post[j]·y + Σ_i comb[i, j]·x[i, :]        the sum runs over the first index of comb

Axes: y [B, T, D], x [B, T, N, D] (the streams that went into hc_pre), post [B, T, N], comb [B, T, N, N] ->
[B, T, N, D]. Float32 inside, one rounding. Specification section 3.
"""

from __future__ import annotations

from torch import Tensor

from ds4export.ops._body import T
from ds4export.ops._body_numerics import load, store
from ds4export.ops._cases import Gen
from ds4export.ops._define import BOUNDARY, F32, Case, OpDef, Tolerance, new
from ds4export.ops._numerics import stored


def reference(y: Tensor, x: Tensor, post: Tensor, comb: Tensor) -> Tensor:
    mixed = (comb.unsqueeze(-1) * x.float().unsqueeze(3)).sum(2)  # [B, T, i, j, D] summed over i
    return stored(post.unsqueeze(-1) * y.float().unsqueeze(2) + mixed, x)


def fake(y: Tensor, x: Tensor, post: Tensor, comb: Tensor) -> Tensor:
    return new(x, *x.shape)


def body(y: T, x: T, post: T, comb: T) -> T:
    mixed = x.body.matmul(comb.transpose(0, 1, 3, 2), load(x))
    return store(post.unsqueeze(3) * load(y).unsqueeze(2) + mixed)


def _case(batch: int, tokens: int, width: int, streams: int = 4) -> Case:
    def make(g: Gen) -> tuple[object, ...]:
        comb = g.f32(batch, tokens, streams, streams).abs()
        post = g.f32(batch, tokens, streams)
        return g.x(batch, tokens, width), g.x(batch, tokens, streams, width), post, comb

    return Case(f"{batch}x{tokens}x{width}", make)


OP = OpDef(
    name="hc_post",
    schema="(Tensor y, Tensor x, Tensor post, Tensor comb) -> Tensor",
    inputs={"y": BOUNDARY, "x": BOUNDARY, "post": F32, "comb": F32},
    outputs={"out": BOUNDARY},
    reference=reference,
    fake=fake,
    body=body,
    tolerance=Tolerance(
        1e-6, 3e-4, 8e-3, "four products in another order; one bf16 ulp where they round apart"
    ),
    cases=(_case(1, 1, 32), _case(2, 5, 33), _case(3, 1, 7, 2)),
)
