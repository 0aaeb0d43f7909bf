"""mtp_merge: the input of the multi-token-prediction block.

    out[n] = e + h[n]        e = e_proj·rms(embed[id at t+1]), h[n] = h_proj·rms(x[n])

Axes: e [B, T, 1, D], h [B, T, N, D] -> [B, T, N, D]; one rounding. Specification section 10.
"""

from __future__ import annotations

from torch import Tensor

from ds4export.ops._body import T
from ds4export.ops._body_numerics import load, store
from ds4export.ops._cases import Gen
from ds4export.ops._define import BOUNDARY, Case, OpDef, Tolerance, new
from ds4export.ops._numerics import stored


def reference(e: Tensor, h: Tensor) -> Tensor:
    return stored(e.float() + h.float(), h)


def fake(e: Tensor, h: Tensor) -> Tensor:
    return new(h, *h.shape)


def body(e: T, h: T) -> T:
    return store(load(e) + load(h))


def _case(batch: int, tokens: int, streams: int, width: int) -> Case:
    def make(g: Gen) -> tuple[object, ...]:
        return g.x(batch, tokens, 1, width), g.x(batch, tokens, streams, width)

    return Case(f"{batch}x{tokens}x{streams}x{width}", make)


OP = OpDef(
    name="mtp_merge",
    schema="(Tensor e, Tensor h) -> Tensor",
    inputs={"e": BOUNDARY, "h": BOUNDARY},
    outputs={"out": BOUNDARY},
    reference=reference,
    fake=fake,
    body=body,
    tolerance=Tolerance(0.0, 0.0, 0.0, "one addition and one rounding, both exact"),
    cases=(_case(1, 1, 4, 32), _case(2, 5, 4, 33)),
)
