"""hc_pre: manifold-constrained hyper-connection, the mix before a sublayer, with the sublayer's norm.

    f = flatten(x)                     stream-major, [N·D]
    q = (fn · f) · rsqrt(mean(f²) + rms_eps)                          [(2+N)·N]
    pre[n]  = sigmoid(q[n]·scale[0] + base[n]) + hc_eps
    post[n] = 2·sigmoid(q[N+n]·scale[1] + base[N+n])
    C       = softmax over j of q[2N+iN+j]·scale[2] + base[2N+iN+j], plus hc_eps
    C      /= column sums + hc_eps, then iterations-1 times rows and columns in turn (Sinkhorn)
    a       = rms(Σ_n pre[n]·x[n], norm)

Axes: x [B, T, N, D] -> a [B, T, D], post [B, T, N] float32, comb [B, T, N, N] float32 (C[i, j], row i sums over
j). Float32 inside; the weighted sum is rounded to the boundary dtype before the norm, the norm after it.
Specification section 3.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ds4export.ops._body import T
from ds4export.ops._body_numerics import load, rounded, store
from ds4export.ops._body_numerics import rms as body_rms
from ds4export.ops._cases import Gen
from ds4export.ops._define import BOUNDARY, F32, WEIGHT, Case, OpDef, Tolerance, new
from ds4export.ops._numerics import rms, stored
from ds4export.ops._numerics import rounded as torch_rounded


def mixes(x_BTND: Tensor, fn: Tensor, rms_eps: float) -> Tensor:
    """q of the formula: [B, T, outputs of fn]."""
    f = x_BTND.float().flatten(2)
    return (f @ fn.T) * torch.rsqrt(f.square().mean(-1, keepdim=True) + rms_eps)


def sinkhorn(c: Tensor, iterations: int, eps: float) -> Tensor:
    c = c.softmax(-1) + eps
    c = c / (c.sum(-2, keepdim=True) + eps)
    for _ in range(iterations - 1):
        c = c / (c.sum(-1, keepdim=True) + eps)
        c = c / (c.sum(-2, keepdim=True) + eps)
    return c


def reference(
    x: Tensor,
    fn: Tensor,
    base: Tensor,
    scale: Tensor,
    norm: Tensor,
    iterations: int,
    hc_eps: float,
    rms_eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    n = x.shape[2]
    q = mixes(x, fn, rms_eps)
    pre = torch.sigmoid(q[..., :n] * scale[0] + base[:n]) + hc_eps
    post = 2 * torch.sigmoid(q[..., n : 2 * n] * scale[1] + base[n : 2 * n])
    c = (q[..., 2 * n :] * scale[2] + base[2 * n :]).unflatten(-1, (n, n))
    a = torch_rounded((pre.unsqueeze(-1) * x.float()).sum(2), x)
    return stored(rms(a, norm, rms_eps), x), post, sinkhorn(c, iterations, hc_eps)


def fake(
    x: Tensor, fn: Tensor, base: Tensor, scale: Tensor, norm: Tensor, *_: object
) -> tuple[Tensor, ...]:
    b, t, n, d = x.shape
    return (
        new(x, b, t, d),
        new(x, b, t, n, dtype=torch.float32),
        new(x, b, t, n, n, dtype=torch.float32),
    )


def body_mixes(x: T, fn: T, rms_eps: float) -> T:
    f = x.reshape(0, 0, -1)
    return x.body.matmul_t(f, fn) * (1.0 / ((f * f).mean(-1) + rms_eps).unary("Sqrt"))


def body(
    x: T, fn: T, base: T, scale: T, norm: T, *, iterations: int, hc_eps: float, rms_eps: float
) -> tuple[T, T, T]:
    x = load(x)
    n = x.size(2)
    n2, end = n + n, fn.size(0)
    q = body_mixes(x, fn, rms_eps)

    def part(i: int, start: T | int, stop: T) -> T:
        return q.slice(-1, start, stop) * scale.slice(0, i, i + 1) + base.slice(0, start, stop)

    pre = part(0, 0, n).unary("Sigmoid") + hc_eps
    post = part(1, n, n2).unary("Sigmoid") * 2.0
    c = part(2, n2, end).reshape(0, 0, n, n)
    c = x.body.op("Softmax", c, dtype=c.dtype, axis=-1) + hc_eps
    c = c / (c.sum(-2) + hc_eps)
    for _ in range(iterations - 1):
        c = c / (c.sum(-1) + hc_eps)
        c = c / (c.sum(-2) + hc_eps)
    a = rounded((pre.unsqueeze(3) * x).sum(2, keepdims=False))
    return store(body_rms(a, norm, rms_eps)), post, c


def _case(batch: int, tokens: int, width: int, gain: float, streams: int = 4) -> Case:
    def make(g: Gen) -> tuple[object, ...]:
        outs = (2 + streams) * streams
        x = g.x(batch, tokens, streams, width)
        fn, base = g.f32(outs, streams * width) * gain, g.f32(outs)
        return x, fn, base, g.f32(3).abs() + 0.5, g.bf16(width), 20, 1e-6, 1e-6

    return Case(f"{batch}x{tokens}x{width}-gain{gain}", make)


OP = OpDef(
    name="hc_pre",
    schema="(Tensor x, Tensor fn, Tensor base, Tensor scale, Tensor norm, int iterations, float hc_eps, "
    "float rms_eps) -> (Tensor, Tensor, Tensor)",
    inputs={"x": BOUNDARY, "fn": F32, "base": F32, "scale": F32, "norm": WEIGHT},
    outputs={"a": BOUNDARY, "post": F32, "comb": F32},
    reference=reference,
    fake=fake,
    body=body,
    tolerance=Tolerance(
        2e-6,
        3e-4,
        8e-3,
        "float32 sums in another order; one bf16 ulp (2^-8) where they round apart",
    ),
    cases=(_case(1, 1, 32, 0.1), _case(2, 5, 48, 0.1), _case(1, 3, 64, 1.0), _case(2, 2, 16, 0.0)),
)
