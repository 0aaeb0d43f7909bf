"""linear_fp8: y = x · (e4m3 weight · tile scale)ᵀ, the block-scaled FP8 linear.

    official: x is rounded by A8(128) first: power-of-two scale per 128 inputs, e4m3 codes
    y[..., o] = Σ_i x[..., i]·e4m3(weight[o, i])·scale[o/128, i/128]       float32 sum, one rounding

Axes: x [..., I], weight bytes [O, I], scale [ceil(O/128), ceil(I/128)] E8M0 bytes, or float32 in some -Base
files -> [..., O]. Scales are powers of two, so folding them into the operands is exact. Specification sections
2.3 and 11 row 3.
"""

from __future__ import annotations

from torch import Tensor

from ds4export.ops._body import T
from ds4export.ops._body_numerics import in_rows, store
from ds4export.ops._body_numerics import linear_fp8 as body_linear_fp8
from ds4export.ops._body_numerics import quantised_activation as body_quantised_activation
from ds4export.ops._cases import Gen
from ds4export.ops._define import BOUNDARY, BYTES, Case, OpDef, Tolerance, new
from ds4export.ops._numerics import dequantise_fp8, quantised_activation, stored


def reference(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    return stored(quantised_activation(x) @ dequantise_fp8(weight, scale).T, x)


def fake(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    return new(x, *x.shape[:-1], weight.shape[0])


def body(x: T, weight: T, scale: T) -> T:
    xq = body_quantised_activation(x)
    return store(in_rows(xq, lambda rows: body_linear_fp8(rows, weight, scale), weight.size(0)))


def _case(name: str, shape: tuple[int, ...], outputs: int, gain: float = 1.0) -> Case:
    def make(g: Gen) -> tuple[object, ...]:
        return g.x(*shape) * gain, *g.fp8(outputs, shape[-1])

    return Case(name, make)


OP = OpDef(
    name="linear_fp8",
    schema="(Tensor x, Tensor weight, Tensor scale) -> Tensor",
    inputs={"x": BOUNDARY, "weight": BYTES, "scale": BYTES},
    outputs={"y": BOUNDARY},
    reference=reference,
    fake=fake,
    body=body,
    tolerance=Tolerance(
        2e-6, 3e-3, 3e-2, "float32 sums in another order; one bf16 ulp where they round apart"
    ),
    cases=(
        _case("one tile", (1, 1, 128), 128),
        _case("ragged tiles", (2, 3, 200), 130),
        _case("narrow", (1, 5, 32), 7),
        _case("four axes", (2, 2, 3, 256), 64),
        _case("below the floor of amax", (1, 2, 128), 16, 1e-7),
    ),
)
