"""attention_window: sparse attention of layers without compression (and of MTP): the window alone.

Axes: q [B, T, H, d], kv [B, T, d], ring [S, R + 1, d], sink float32 [H], freqs [r/2], slots, positions, num_new
INT64 [B] -> o [B, T, H·d], ring_out. The maths stands in `_attention`.
"""

from __future__ import annotations

from torch import Tensor

from ds4export.ops._attention import (
    ALIASES,
    OUTPUTS,
    RING,
    TAIL,
    attend,
    body_attend,
    case_inputs,
    fake,
)
from ds4export.ops._body import T
from ds4export.ops._define import BOUNDARY, Case, OpDef, Tolerance


def reference(
    q: Tensor,
    kv: Tensor,
    ring: Tensor,
    sink: Tensor,
    freqs: Tensor,
    slots: Tensor,
    positions: Tensor,
    num_new: Tensor,
    window: int,
) -> tuple[Tensor, Tensor]:
    return attend(q, kv, ring, sink, freqs, slots, positions, num_new, window, None)


def body(q: T, kv: T, ring: T, *tail: T, window: int) -> tuple[T, T]:
    return body_attend(q, kv, ring, *tail, window=window)


def _case(
    name: str,
    tokens: int,
    rows: list[tuple[int, int]],
    *,
    window: int = 16,
    spare: int = 0,
    nan: bool = False,
) -> Case:
    def make(g: object) -> tuple[object, ...]:
        head, tail = case_inputs(g, rows, tokens, 3, 64, window, spare, nan)  # type: ignore[arg-type]
        return *head, *tail, window

    return Case(name, make)


OP = OpDef(
    name="attention_window",
    schema="(Tensor q, Tensor kv, Tensor ring, Tensor sink, Tensor freqs, Tensor slots, Tensor positions, "
    "Tensor num_new, int window) -> (Tensor, Tensor)",
    inputs={"q": BOUNDARY, "kv": BOUNDARY, "ring": BOUNDARY, **TAIL},
    outputs=OUTPUTS,
    aliases=ALIASES,
    cache=RING,
    reference=reference,
    fake=fake,
    body=body,
    tolerance=Tolerance(
        5e-6, 3e-3, 3e-2, "float32 sums in another order may move P or o to the next bf16 value"
    ),
    cases=(
        _case("first token, NaN-filled ring", 1, [(0, 1)], nan=True),
        _case("prefill past the window", 40, [(0, 40)], nan=True),
        _case("decode", 1, [(15, 1), (16, 1), (200, 1)]),
        _case("chunks at the ring's border", 7, [(13, 7), (16, 5), (30, 0)]),
        _case("spare rows", 5, [(21, 5), (3, 2)], spare=4),
        _case("more than one list block", 9, [(130, 9), (60, 4)], window=80),
    ),
)
