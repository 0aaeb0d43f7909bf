"""linear_bf16: y = x · weightᵀ with a bf16 weight and no activation quantisation.

Axes: x [..., I], weight bf16 [O, I] -> [..., O]. Float32 sum, one rounding. Specification section 11 row 10.
"""

from __future__ import annotations

from torch import Tensor

from ds4export.ops._body import T
from ds4export.ops._body_numerics import in_rows, load, store
from ds4export.ops._body_numerics import linear_bf16 as body_linear_bf16
from ds4export.ops._define import BOUNDARY, WEIGHT, Case, OpDef, Tolerance, new
from ds4export.ops._numerics import stored


def reference(x: Tensor, weight: Tensor) -> Tensor:
    return stored(x.float() @ weight.float().T, x)


def fake(x: Tensor, weight: Tensor) -> Tensor:
    return new(x, *x.shape[:-1], weight.shape[0])


def body(x: T, weight: T) -> T:
    product = in_rows(load(x), lambda rows: body_linear_bf16(rows, weight), weight.size(0))
    return store(product)


def _case(shape: tuple[int, ...], outputs: int) -> Case:
    return Case(f"{shape}-{outputs}", lambda g: (g.x(*shape), g.bf16(outputs, shape[-1])))


OP = OpDef(
    name="linear_bf16",
    schema="(Tensor x, Tensor weight) -> Tensor",
    inputs={"x": BOUNDARY, "weight": WEIGHT},
    outputs={"y": BOUNDARY},
    reference=reference,
    fake=fake,
    body=body,
    tolerance=Tolerance(
        2e-6, 3e-4, 8e-3, "float32 sums in another order; one bf16 ulp where they round apart"
    ),
    cases=(_case((1, 1, 32), 8), _case((2, 5, 33), 16)),
)
