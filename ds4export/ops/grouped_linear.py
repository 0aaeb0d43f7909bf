"""grouped_linear: the first half of the output projection, one matrix per group of heads.

    z[..., g·O + o] = Σ_i o_g[..., i]·e4m3(weight[g·O + o, i])·scale        o_g = heads g·H/G .. (g+1)·H/G-1

Axes: x [B, T, G·I] (heads in order), weight bytes [G·O, I], scale tiles -> [B, T, G·O]. The weight is
dequantised to bf16 without loss and the input is not quantised. Specification sections 4 and 11 row 12.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ds4export.ops._body import FLOAT, T
from ds4export.ops._body_numerics import (
    fp8_rows,
    load,
    padded_to_tiles,
    rounded,
    scale_values,
    store,
)
from ds4export.ops._cases import Gen
from ds4export.ops._define import BOUNDARY, BYTES, Case, OpDef, Tolerance, new
from ds4export.ops._numerics import dequantise_fp8, stored
from ds4export.ops._numerics import rounded as torch_rounded


def reference(x: Tensor, weight: Tensor, scale: Tensor, groups: int) -> Tensor:
    w_GOI = torch_rounded(dequantise_fp8(weight, scale), x).unflatten(0, (groups, -1))
    x_BTGI = x.float().unflatten(-1, (groups, -1))
    # not a broadcast `@`: it would copy the weight for every token
    return stored(torch.einsum("btgi,goi->btgo", x_BTGI, w_GOI).flatten(2), x)


def fake(x: Tensor, weight: Tensor, scale: Tensor, groups: int) -> Tensor:
    return new(x, *x.shape[:-1], weight.shape[0])


def body(x: T, weight: T, scale: T, *, groups: int) -> T:
    b, scales, outputs = x.body, scale_values(scale), weight.size(0) // groups
    xs = load(x).reshape(-1, groups, weight.size(1))

    def one_group(g: T, _: tuple[T, ...]) -> tuple[tuple[T, ...], tuple[T, ...]]:
        start = g.reshape(1) * outputs
        w = rounded(fp8_rows(weight, scales, start, start + outputs))
        inputs = padded_to_tiles(xs.gather(g, axis=1), scale)
        return (), (b.op("Gemm", inputs, w, dtype=FLOAT, transB=1),)

    (stacked,) = b.loop(b.ints(groups), (), one_group)  # [G, B·T, O]
    return store(stacked.transpose(1, 0, 2).reshape(x.size(0, 2), weight.size(0)))


def _case(batch: int, tokens: int, groups: int, outputs: int, inputs: int) -> Case:
    def make(g: Gen) -> tuple[object, ...]:
        return g.x(batch, tokens, groups * inputs), *g.fp8(groups * outputs, inputs), groups

    return Case(f"{batch}x{tokens}-{groups}x{outputs}x{inputs}", make)


OP = OpDef(
    name="grouped_linear",
    schema="(Tensor x, Tensor weight, Tensor scale, int groups) -> Tensor",
    inputs={"x": BOUNDARY, "weight": BYTES, "scale": BYTES},
    outputs={"y": BOUNDARY},
    reference=reference,
    fake=fake,
    body=body,
    tolerance=Tolerance(
        2e-6, 3e-4, 8e-3, "float32 sums in another order; one bf16 ulp where they round apart"
    ),
    cases=(_case(1, 1, 2, 64, 256), _case(2, 3, 4, 33, 72), _case(1, 2, 1, 16, 128)),
)
