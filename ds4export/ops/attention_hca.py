"""attention_hca: heavily compressed attention: the window and every visible entry.

Entry j is visible to the query at position t where (j+1)·ratio <= t + 1.

Axes: q [B, T, H, d], kv [B, T, d], ring [S, R + 1, d], entries [S, C + 1, d] (already holding this chunk's), sink
float32 [H], freqs [r/2], slots, positions, num_new INT64 [B] -> o [B, T, H·d], ring_out. The maths stands in
`_attention`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ds4export.ops._attention import (
    ALIASES,
    OUTPUTS,
    RING_AND_ENTRIES,
    TAIL,
    attend,
    body_attend,
    case_inputs,
    fake,
)
from ds4export.ops._body import INT64, T
from ds4export.ops._body_numerics import load
from ds4export.ops._cases import Gen
from ds4export.ops._define import BOUNDARY, Case, OpDef, Tolerance
from ds4export.ops._ring import gather_pool


def reference(
    q: Tensor,
    kv: Tensor,
    ring: Tensor,
    entries: Tensor,
    sink: Tensor,
    freqs: Tensor,
    slots: Tensor,
    positions: Tensor,
    num_new: Tensor,
    window: int,
    ratio: int,
) -> tuple[Tensor, Tensor]:
    def compressed(b: int, slot: int, at: Tensor) -> tuple[Tensor, Tensor]:
        j = torch.arange((int(positions[b]) + int(num_new[b])) // ratio)
        keys = entries[slot, : len(j)].float().expand(len(at), -1, -1)
        return keys, (j + 1) * ratio <= at[:, None] + 1

    return attend(q, kv, ring, sink, freqs, slots, positions, num_new, window, compressed)


def body(q: T, kv: T, ring: T, entries: T, *tail: T, window: int, ratio: int) -> tuple[T, T]:
    b = q.body
    _, _, slots, positions, num_new = tail
    own = (positions + num_new) // ratio  # entries of each batch row
    most = b.op("ReduceMax", own, dtype=INT64, keepdims=0).reshape(1)
    j = b.arange(most)
    rows = load(gather_pool(entries, slots, j.unsqueeze(0).expand(slots.size(0), most)))
    exists = j.unsqueeze(0) < own.unsqueeze(1)
    rows = b.where(exists.unsqueeze(2), rows, 0.0).unsqueeze(
        1
    )  # [B, 1, n, d], shared by the queries

    def compressed(at: T) -> tuple[T, T]:
        return rows, (j + 1) * ratio <= at.unsqueeze(2) + 1

    logits_per_query = slots.size(0) * q.size(2) * most
    return body_attend(
        q, kv, ring, *tail, window=window, compressed=compressed, gathered=logits_per_query
    )


def _case(name: str, tokens: int, rows: list[tuple[int, int]], ratio: int = 8) -> Case:
    def make(g: Gen) -> tuple[object, ...]:
        head, tail = case_inputs(g, rows, tokens, 3, 64, 16, 0, False)
        entries = g.state(len(rows) + 1, 90, 64)
        for slot in range(len(rows)):
            p, n = rows[len(rows) - 1 - slot]
            entries[slot, (p + n) // ratio :] = torch.nan
        return *head, entries, *tail, 16, ratio

    return Case(name, make)


OP = OpDef(
    name="attention_hca",
    schema="(Tensor q, Tensor kv, Tensor ring, Tensor entries, Tensor sink, Tensor freqs, Tensor slots, "
    "Tensor positions, Tensor num_new, int window, int ratio) -> (Tensor, Tensor)",
    inputs={"q": BOUNDARY, "kv": BOUNDARY, "ring": BOUNDARY, "entries": BOUNDARY, **TAIL},
    outputs=OUTPUTS,
    aliases=ALIASES,
    cache=RING_AND_ENTRIES,
    reference=reference,
    fake=fake,
    body=body,
    tolerance=Tolerance(
        5e-6, 3e-3, 3e-2, "float32 sums in another order may move P or o to the next bf16 value"
    ),
    cases=(
        _case("no entry yet", 3, [(0, 3)]),
        _case("decode, several list blocks", 1, [(640, 1), (7, 1)]),
        _case("chunk completes entries", 20, [(13, 20), (0, 9)]),
        _case("ragged with a large sibling", 5, [(500, 5), (2, 0), (1, 3)]),
    ),
)
