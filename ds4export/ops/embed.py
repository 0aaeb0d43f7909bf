"""embed: token ids to residual streams.

    x[b, t, n, :] = weight[ids[b, t], :]      n = 0 .. hc_mult-1, identical copies

Axes: B rows, T tokens, N = hc_mult streams, V vocabulary, D hidden. `ids` must lie in [0, V); padding ids must
be valid too. `official` is 1 for bf16 streams, 0 for float32: the one op whose numerics no input tells.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ds4export.ops._body import BF16, FLOAT, T
from ds4export.ops._cases import Gen
from ds4export.ops._define import BOUNDARY, INTS, WEIGHT, Case, OpDef, Tolerance


def reference(ids_BT: Tensor, weight_VD: Tensor, hc_mult: int, official: int) -> Tensor:
    x_BTD = weight_VD[ids_BT].to(torch.bfloat16 if official else torch.float32)
    return x_BTD.unsqueeze(2).repeat(1, 1, hc_mult, 1)


def fake(ids: Tensor, weight: Tensor, hc_mult: int, official: int) -> Tensor:
    dtype = torch.bfloat16 if official else torch.float32
    return weight.new_empty((*ids.shape, hc_mult, weight.shape[1]), dtype=dtype)


def body(ids: T, weight: T, *, hc_mult: int, official: int) -> T:
    x = weight.gather(ids).cast(FLOAT).unsqueeze(2).expand(1, 1, hc_mult, 1)
    return x.cast(BF16) if official else x


def _case(batch: int, tokens: int, streams: int = 4) -> Case:
    def make(g: Gen) -> tuple[object, ...]:
        return g.ids(batch, tokens, 37), g.bf16(37, 24), streams, int(g.official)

    return Case(f"{batch}x{tokens}x{streams}", make)


OP = OpDef(
    name="embed",
    schema="(Tensor ids, Tensor weight, int hc_mult, int official) -> Tensor",
    inputs={"ids": INTS, "weight": WEIGHT},
    outputs={"x": BOUNDARY},
    reference=reference,
    fake=fake,
    body=body,
    tolerance=Tolerance(0.0, 0.0, 0.0, "a copy"),
    cases=(_case(1, 1), _case(3, 5), _case(2, 7, 1)),
)
