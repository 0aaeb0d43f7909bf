"""shared_expert: the expert that every token takes.

    y = w2·(silu(min(w1·x, limit))·clamp(w3·x, ±limit))        weight 1, not multiplied by the routed scale

Axes: x [B, T, D], w1, w3 bytes [I, D], w2 bytes [D, I], each with its 128×128 tile scales -> [B, T, D]. Rounded as a
routed expert. Specification sections 9 and 11 row 14.
"""

from __future__ import annotations

from torch import Tensor

from ds4export.ops import _body_numerics as body_numerics
from ds4export.ops._body import T
from ds4export.ops._cases import Gen
from ds4export.ops._define import BOUNDARY, BYTES, Case, OpDef, Tolerance, new
from ds4export.ops._numerics import dequantise_fp8, quantised_activation, rounded, stored, swiglu


def reference(
    x: Tensor,
    w1: Tensor,
    w1_scale: Tensor,
    w2: Tensor,
    w2_scale: Tensor,
    w3: Tensor,
    w3_scale: Tensor,
    limit: float,
) -> Tensor:
    xq = quantised_activation(x)
    gate, up = (
        rounded(xq @ dequantise_fp8(w, s).T, x) for w, s in ((w1, w1_scale), (w3, w3_scale))
    )
    h = stored(swiglu(gate, up, limit), x)
    return stored(quantised_activation(h) @ dequantise_fp8(w2, w2_scale).T, x)


def fake(x: Tensor, *_: object) -> Tensor:
    return new(x, *x.shape)


def body(x: T, w1: T, w1_scale: T, w2: T, w2_scale: T, w3: T, w3_scale: T, *, limit: float) -> T:
    xq = body_numerics.quantised_activation(x).reshape(-1, x.size(2))
    gate, up = (
        body_numerics.rounded(body_numerics.linear_fp8(xq, w, s))
        for w, s in ((w1, w1_scale), (w3, w3_scale))
    )
    h = body_numerics.store(body_numerics.swiglu(gate, up, limit))
    y = body_numerics.linear_fp8(body_numerics.quantised_activation(h), w2, w2_scale)
    return body_numerics.store(y).reshape(x.size_all())


def _case(batch: int, tokens: int, hidden: int, inner: int) -> Case:
    def make(g: Gen) -> tuple[object, ...]:
        matrices = (*g.fp8(inner, hidden), *g.fp8(hidden, inner), *g.fp8(inner, hidden))
        return g.x(batch, tokens, hidden) * 4, *matrices, 10.0

    return Case(f"{batch}x{tokens}-{hidden}x{inner}", make)


OP = OpDef(
    name="shared_expert",
    schema="(Tensor x, Tensor w1, Tensor w1_scale, Tensor w2, Tensor w2_scale, Tensor w3, Tensor w3_scale, "
    "float limit) -> Tensor",
    inputs={
        "x": BOUNDARY,
        "w1": BYTES,
        "w1_scale": BYTES,
        "w2": BYTES,
        "w2_scale": BYTES,
        "w3": BYTES,
        "w3_scale": BYTES,
    },
    outputs={"y": BOUNDARY},
    reference=reference,
    fake=fake,
    body=body,
    tolerance=Tolerance(
        3e-6,
        3e-3,
        3e-2,
        "float32 sums in another order; a flipped bf16 rounding may move an activation's e4m3 code",
    ),
    cases=(_case(1, 1, 128, 128), _case(2, 3, 160, 96)),
)
