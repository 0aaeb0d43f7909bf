"""query_heads: projected queries to normed, rotated heads.

    q = x viewed [H, d];  q = q · rsqrt(mean_d(q²) + eps);  rope on the last r dims at the token's position

Axes: x [B, T, H·d], positions INT64 [B] (of the chunk's first token), freqs float32 [r/2] -> [B, T, H, d]. The
norm has no weight. Official numerics rounds every step of it to bf16. Specification sections 4 and 11 row 5.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ds4export.ops._body import T
from ds4export.ops._body_numerics import load, query_positions, store
from ds4export.ops._body_numerics import rope as body_rope
from ds4export.ops._body_numerics import rounded as body_rounded
from ds4export.ops._cases import Gen
from ds4export.ops._define import BOUNDARY, F32, INTS, Case, OpDef, Tolerance, new
from ds4export.ops._numerics import rope, rounded, stored


def token_positions(x_BT: Tensor, positions_B: Tensor) -> Tensor:
    """Absolute position of every token of the chunk: [B, T]."""
    return positions_B[:, None] + torch.arange(x_BT.shape[1])


def rotated(x_BTHd: Tensor, positions_B: Tensor, freqs: Tensor) -> Tensor:
    at_BT = token_positions(x_BTHd, positions_B)
    return rope(x_BTHd.flatten(0, 1), at_BT.flatten(), freqs).unflatten(0, x_BTHd.shape[:2])


def reference(x: Tensor, positions: Tensor, freqs: Tensor, heads: int, eps: float) -> Tensor:
    q = x.float().unflatten(-1, (heads, -1))
    mean = rounded(rounded(q * q, x).mean(-1, keepdim=True), x)
    factor = rounded(torch.rsqrt(rounded(mean + eps, x)), x)
    return stored(rotated(rounded(q * factor, x), positions, freqs), x)


def fake(x: Tensor, positions: Tensor, freqs: Tensor, heads: int, eps: float) -> Tensor:
    return new(x, x.shape[0], x.shape[1], heads, x.shape[2] // heads)


def body(x: T, positions: T, freqs: T, *, heads: int, eps: float) -> T:
    q = load(x).reshape(0, 0, heads, -1)
    mean = body_rounded(body_rounded(q * q).mean(-1))
    factor = body_rounded(1.0 / body_rounded(mean + eps).unary("Sqrt"))
    q = body_rounded(q * factor)
    return store(body_rope(q, query_positions(x, positions), freqs))


def _case(batch: int, tokens: int, heads: int, width: int, rope_dims: int, start: int) -> Case:
    def make(g: Gen) -> tuple[object, ...]:
        positions = g.integers((batch,), start, start + 50)
        return g.x(batch, tokens, heads * width), positions, g.freqs(rope_dims), heads, 1e-6

    return Case(f"{batch}x{tokens}x{heads}x{width}-rope{rope_dims}-at{start}", make)


OP = OpDef(
    name="query_heads",
    schema="(Tensor x, Tensor positions, Tensor freqs, int heads, float eps) -> Tensor",
    inputs={"x": BOUNDARY, "positions": INTS, "freqs": F32},
    outputs={"q": BOUNDARY},
    reference=reference,
    fake=fake,
    body=body,
    tolerance=Tolerance(
        2e-6,
        3e-3,
        2e-2,
        "sine and cosine differ by an ulp; every bf16 step of the norm may round apart",
    ),
    cases=(_case(1, 1, 4, 128, 64, 0), _case(2, 5, 3, 48, 16, 7), _case(1, 2, 2, 72, 8, 1_048_000)),
)
