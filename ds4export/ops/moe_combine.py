"""moe_combine: y = partial + shared, rounded once: the routed sum first, the shared expert last.

Axes: partial float32 [B, T, D] (sums of expert ranges add up before), shared [B, T, D] -> [B, T, D].
Specification section 11 row 14.
"""

from __future__ import annotations

from torch import Tensor

from ds4export.ops._body import T
from ds4export.ops._body_numerics import load, store
from ds4export.ops._cases import Gen
from ds4export.ops._define import BOUNDARY, F32, Case, OpDef, Tolerance, new
from ds4export.ops._numerics import stored


def reference(partial: Tensor, shared: Tensor) -> Tensor:
    return stored(partial + shared.float(), shared)


def fake(partial: Tensor, shared: Tensor) -> Tensor:
    return new(shared, *shared.shape)


def body(partial: T, shared: T) -> T:
    return store(partial + load(shared))


def _case(*shape: int) -> Case:
    def make(g: Gen) -> tuple[object, ...]:
        return g.f32(*shape), g.x(*shape)

    return Case("x".join(map(str, shape)), make)


OP = OpDef(
    name="moe_combine",
    schema="(Tensor partial, Tensor shared) -> Tensor",
    inputs={"partial": F32, "shared": BOUNDARY},
    outputs={"y": BOUNDARY},
    reference=reference,
    fake=fake,
    body=body,
    tolerance=Tolerance(0.0, 0.0, 0.0, "one addition and one rounding, both exact"),
    cases=(_case(1, 1, 32), _case(2, 5, 33)),
)
