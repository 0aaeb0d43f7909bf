"""route_hash: experts by token id, weights by score.

    indices = table[ids];  s = sqrt(softplus(gate·x));  w = s[ind]/Σ s[ind]·scale

Axes: x [B, T, D], gate bf16 [E, D], ids INT64 [B, T], table INT64 [V, k] -> weights float32 [B, T, k], indices INT64
[B, T, k] in table order. There is no bias in these layers. The maths stands in `_route`.
"""

from __future__ import annotations

from torch import Tensor

from ds4export.ops._body import T
from ds4export.ops._cases import Gen
from ds4export.ops._define import BOUNDARY, INTS, WEIGHT, Case, OpDef, Tolerance
from ds4export.ops._route import (
    OUTPUTS,
    body_normalised,
    body_scores,
    fake_route,
    normalised,
    scores,
)


def reference(
    x: Tensor, gate: Tensor, ids: Tensor, table: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    indices = table[ids]
    return normalised(scores(x, gate), indices, scale), indices


def fake(
    x: Tensor, gate: Tensor, ids: Tensor, table: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    return fake_route(x, table.shape[1])


def body(x: T, gate: T, ids: T, table: T, *, scale: float) -> tuple[T, T]:
    indices = table.gather(ids)
    return body_normalised(body_scores(x, gate), indices, scale), indices


def _case(batch: int, tokens: int, experts: int, k: int) -> Case:
    def make(g: Gen) -> tuple[object, ...]:
        table = g.integers((50, k), 0, experts)
        return g.x(batch, tokens, 24), g.bf16(experts, 24), g.ids(batch, tokens, 50), table, 2.5

    return Case(f"{batch}x{tokens}-{k}of{experts}", make)


OP = OpDef(
    name="route_hash",
    schema="(Tensor x, Tensor gate, Tensor ids, Tensor table, float scale) -> (Tensor, Tensor)",
    inputs={"x": BOUNDARY, "gate": WEIGHT, "ids": INTS, "table": INTS},
    outputs=OUTPUTS,
    reference=reference,
    fake=fake,
    body=body,
    tolerance=Tolerance(2e-6, 2e-6, 1e-5, "float32 sums in another order"),
    cases=(_case(1, 1, 8, 2), _case(2, 5, 11, 6)),
)
