"""rms_norm: y = x · rsqrt(mean(x²) + eps) · weight over the last axis.

Axes: x [..., D], weight bf16 [D] -> [..., D]. Float32 inside, one rounding. Specification section 3.
"""

from __future__ import annotations

from torch import Tensor

from ds4export.ops._body import T
from ds4export.ops._body_numerics import load, store
from ds4export.ops._body_numerics import rms as body_rms
from ds4export.ops._cases import Gen
from ds4export.ops._define import BOUNDARY, WEIGHT, Case, OpDef, Tolerance, new
from ds4export.ops._numerics import rms, stored


def reference(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return stored(rms(x, weight, eps), x)


def fake(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return new(x, *x.shape)


def body(x: T, weight: T, *, eps: float) -> T:
    return store(body_rms(load(x), weight, eps))


def _case(*shape: int) -> Case:
    return Case("x".join(map(str, shape)), lambda g: (g.x(*shape), g.bf16(shape[-1]), 1e-6))


def _tiny(g: Gen) -> tuple[object, ...]:
    return g.x(1, 3, 32) * 1e-4, g.bf16(32), 1e-6


OP = OpDef(
    name="rms_norm",
    schema="(Tensor x, Tensor weight, float eps) -> Tensor",
    inputs={"x": BOUNDARY, "weight": WEIGHT},
    outputs={"y": BOUNDARY},
    reference=reference,
    fake=fake,
    body=body,
    tolerance=Tolerance(
        1e-6, 3e-4, 8e-3, "float32 mean in another order; one bf16 ulp where they round apart"
    ),
    cases=(_case(1, 1, 32), _case(2, 5, 48), _case(2, 3, 4, 16), Case("eps-matters", _tiny)),
)
