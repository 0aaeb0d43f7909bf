"""attention_csa: compressed sparse attention: the window and the entries that the indexer chose.

Axes: q [B, T, H, d], kv [B, T, d], ring [S, R + 1, d], entries [S, C + 1, d] (already holding this chunk's),
chosen INT64 [B, T, k] (-1: none), sink float32 [H], freqs [r/2], slots, positions, num_new INT64 [B] -> o [B, T, H·d],
ring_out. The maths stands in `_attention`.
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
from ds4export.ops._body import T
from ds4export.ops._body_numerics import load
from ds4export.ops._cases import Gen
from ds4export.ops._define import BOUNDARY, INTS, Case, OpDef, Tolerance
from ds4export.ops._ring import gather_pool


def reference(
    q: Tensor,
    kv: Tensor,
    ring: Tensor,
    entries: Tensor,
    chosen: Tensor,
    sink: Tensor,
    freqs: Tensor,
    slots: Tensor,
    positions: Tensor,
    num_new: Tensor,
    window: int,
) -> tuple[Tensor, Tensor]:
    def compressed(b: int, slot: int, at: Tensor) -> tuple[Tensor, Tensor]:
        index = chosen[b, : len(at)]
        return entries[slot][index.clamp_min(0)].float(), index >= 0

    return attend(q, kv, ring, sink, freqs, slots, positions, num_new, window, compressed)


def body(q: T, kv: T, ring: T, entries: T, chosen: T, *tail: T, window: int) -> tuple[T, T]:
    slots = tail[2]

    def compressed(at: T, index: T) -> tuple[T, T]:
        flat = index.clip(0, None).reshape(0, -1)
        rows = load(gather_pool(entries, slots, flat)).reshape(index.size_all(), -1)
        valid = index >= 0
        return index.body.where(valid.unsqueeze(3), rows, 0.0), valid

    per_query = slots.size(0) * q.size(3) * chosen.size(2)
    return body_attend(
        q,
        kv,
        ring,
        *tail,
        window=window,
        compressed=compressed,
        blocked=(chosen,),
        gathered=per_query,
    )


def _case(
    name: str, tokens: int, rows: list[tuple[int, int]], k: int = 8, *, none: bool = False
) -> Case:
    def make(g: Gen) -> tuple[object, ...]:
        head, tail = case_inputs(g, rows, tokens, 3, 64, 16, 0, False)
        batch = len(rows)
        entries = g.state(batch + 1, 60, 64)
        entries[:, 50:] = torch.nan
        chosen = torch.stack(
            [torch.randperm(50, generator=_generator(g))[:k] for _ in range(batch * tokens)]
        )
        chosen = chosen.unflatten(0, (batch, tokens))
        chosen[..., k // 2 :] = torch.where(
            g.integers((batch, tokens, k - k // 2), 0, 2) > 0, chosen[..., k // 2 :], -1
        )
        if none:
            chosen[:] = -1
        return *head, entries, chosen, *tail, 16

    return Case(name, make)


def _generator(g: Gen) -> torch.Generator:
    return torch.Generator().manual_seed(int(g.integers((1,), 0, 1 << 30)))


OP = OpDef(
    name="attention_csa",
    schema="(Tensor q, Tensor kv, Tensor ring, Tensor entries, Tensor chosen, Tensor sink, Tensor freqs, Tensor slots, "
    "Tensor positions, Tensor num_new, int window) -> (Tensor, Tensor)",
    inputs={
        "q": BOUNDARY,
        "kv": BOUNDARY,
        "ring": BOUNDARY,
        "entries": BOUNDARY,
        "chosen": INTS,
        **TAIL,
    },
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
        _case("decode", 1, [(100, 1), (7, 1)]),
        _case("no entry chosen", 3, [(0, 3)], none=True),
        _case("ragged chunk", 9, [(90, 9), (3, 0), (15, 4)]),
        _case("several list blocks", 4, [(120, 4)], 49),
    ),
)
