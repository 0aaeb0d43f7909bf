"""kv_row: the projected latent to the row that attention reads as key and value.

    kv = rms(x, norm);  rope on the last r dims;  official: A8(64) round trip on the other dims

Axes: x [B, T, d], norm bf16 [d], positions INT64 [B], freqs [r/2] -> [B, T, d]. Specification sections 4, 11 row 7.
"""

from __future__ import annotations

from torch import Tensor

from ds4export.ops._body import T
from ds4export.ops._body_numerics import load, query_positions, store
from ds4export.ops._body_numerics import rms as body_rms
from ds4export.ops._body_numerics import rope as body_rope
from ds4export.ops._body_numerics import rounded as body_rounded
from ds4export.ops._body_numerics import rounded_nope as body_rounded_nope
from ds4export.ops._cases import Gen
from ds4export.ops._define import BOUNDARY, F32, INTS, WEIGHT, Case, OpDef, Tolerance, new
from ds4export.ops._numerics import rms, rounded, rounded_nope, stored
from ds4export.ops.query_heads import rotated


def reference(x: Tensor, norm: Tensor, positions: Tensor, freqs: Tensor, eps: float) -> Tensor:
    kv = rotated(rounded(rms(x, norm, eps), x).unsqueeze(2), positions, freqs).squeeze(2)
    return stored(rounded_nope(rounded(kv, x), 2 * len(freqs), x), x)


def fake(x: Tensor, norm: Tensor, positions: Tensor, freqs: Tensor, eps: float) -> Tensor:
    return new(x, *x.shape)


def body(x: T, norm: T, positions: T, freqs: T, *, eps: float) -> T:
    kv = body_rounded(body_rms(load(x), norm, eps)).unsqueeze(2)
    kv = body_rounded(body_rope(kv, query_positions(x, positions), freqs)).squeeze(2)
    return store(body_rounded_nope(kv, freqs))


def _case(batch: int, tokens: int, width: int, rope_dims: int, start: int) -> Case:
    def make(g: Gen) -> tuple[object, ...]:
        positions = g.integers((batch,), start, start + 50)
        return g.x(batch, tokens, width), g.bf16(width), positions, g.freqs(rope_dims), 1e-6

    return Case(f"{batch}x{tokens}x{width}-rope{rope_dims}-at{start}", make)


OP = OpDef(
    name="kv_row",
    schema="(Tensor x, Tensor norm, Tensor positions, Tensor freqs, float eps) -> Tensor",
    inputs={"x": BOUNDARY, "norm": WEIGHT, "positions": INTS, "freqs": F32},
    outputs={"kv": BOUNDARY},
    reference=reference,
    fake=fake,
    body=body,
    tolerance=Tolerance(
        2e-6,
        3e-3,
        3e-2,
        "a bf16 rounding apart may move a value to the next e4m3 code, an eighth of it",
    ),
    cases=(_case(1, 1, 128, 64, 0), _case(2, 5, 192, 64, 3), _case(1, 3, 80, 16, 1_048_000)),
)
