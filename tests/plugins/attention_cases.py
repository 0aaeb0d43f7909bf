"""Cases of the attention family in the widths and head counts that run, beside the cases of the ops.

Flash has 64 heads of 512 and a choice of 512, Pro 128 and 1024. Few queries are drawn: what is tested is the instance,
the split of a list, the borders of the ring, and rows that must not be read (they hold NaN).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ds4export.ops._cases import Gen
from ds4export.ops._define import Case

Rows = list[tuple[int, int]]  # (position, new tokens) of each batch row
ROPE_DIMS = 64


def _inputs(
    g: Gen, rows: Rows, tokens: int, heads: int, width: int, window: int
) -> tuple[list[Tensor], list[Tensor]]:
    """(q, kv, ring) and (sink, freqs, slots, positions, num_new); ring rows that hold no position are NaN."""
    batch = len(rows)
    ring = g.state(batch + 1, window + 1, width)
    ring[:, window] = torch.nan
    slots = torch.arange(batch).flip(0)
    for slot, (position, _) in zip(slots.tolist(), rows, strict=True):
        ring[slot, min(position, window) :] = torch.nan
    positions, num_new = (torch.tensor(v) for v in zip(*rows, strict=True))
    head = [g.x(batch, tokens, heads, width), g.x(batch, tokens, width), ring]
    for b, (_, n) in enumerate(rows):
        head[1][b, n:] = torch.nan
    freqs = g.freqs(min(ROPE_DIMS, width // 2))
    return head, [g.f32(heads), freqs, slots, positions, num_new]


def _window(name: str, rows: Rows, tokens: int, heads: int, width: int, window: int) -> Case:
    def make(g: Gen) -> tuple[object, ...]:
        head, tail = _inputs(g, rows, tokens, heads, width, window)
        return *head, *tail, window

    return Case(name, make)


def _csa(
    name: str, rows: Rows, tokens: int, heads: int, width: int, window: int, k: int, none: float = 0
) -> Case:
    """`none`: the share of -1 in the lists; entries that no list names are NaN."""

    def make(g: Gen) -> tuple[object, ...]:
        head, tail = _inputs(g, rows, tokens, heads, width, window)
        num_entries = k + k // 2 + 1
        chosen = g.integers((len(rows), tokens, k), 0, num_entries - 1)
        chosen[torch.from_numpy(g.rng.random(chosen.shape)) < none] = -1
        entries = g.state(len(rows) + 1, num_entries + 1, width)
        entries[:, num_entries - 1 :] = torch.nan
        return *head, entries, chosen, *tail, window

    return Case(name, make)


def _hca(
    name: str,
    rows: Rows,
    tokens: int,
    heads: int,
    width: int,
    window: int,
    capacity: int,
    ratio: int,
) -> Case:
    def make(g: Gen) -> tuple[object, ...]:
        head, tail = _inputs(g, rows, tokens, heads, width, window)
        entries = g.state(len(rows) + 1, capacity + 1, width)
        for slot, (position, n) in zip(tail[2].tolist(), rows, strict=True):
            entries[slot, (position + n) // ratio :] = torch.nan
        return *head, entries, *tail, window, ratio

    return Case(name, make)


def _choice(name: str, rows: Rows, tokens: int, heads: int, width: int, keys: int, k: int) -> Case:
    """Values as FP4 has them, small: sums are exact in any order, and what must agree is the choice among ties."""

    def make(g: Gen) -> tuple[object, ...]:
        small = torch.tensor([0.0, 0.5, 1.0, -0.5, -1.0], dtype=torch.bfloat16)
        q = small[g.integers((len(rows), tokens, heads, width), 0, 5)]
        cache = small[g.integers((len(rows) + 1, keys + 1, width), 0, 5)]
        weights = small[g.integers((len(rows), tokens, heads), 0, 5)]
        slots = torch.arange(len(rows)).flip(0)
        for slot, (position, n) in zip(slots.tolist(), rows, strict=True):
            cache[slot, (position + n) // 4 :] = torch.nan
        positions, num_new = (torch.tensor(v) for v in zip(*rows, strict=True))
        return q, weights, cache, slots, positions, num_new, k, 4

    return Case(name, make)


ATTENTION_CASES: dict[str, Sequence[Case]] = {
    "attention_window": (
        _window("tiny-a", [(14, 5), (0, 0), (0, 2)], 5, 4, 128, 16),
        _window("tiny-c", [(23, 3)], 3, 4, 192, 24),
        _window("flash decode", [(1000, 1), (5, 1)], 1, 64, 512, 128),
        _window("flash, ring's border", [(126, 4), (0, 3)], 4, 64, 512, 128),
        _window("last position of a million", [(1048575, 1)], 1, 4, 128, 16),
        _window("nothing new", [(7, 0)], 2, 4, 128, 16),
        _window("no token", [(7, 0)], 0, 4, 128, 16),
        _window("heads that fill no tile", [(40, 2)], 2, 33, 512, 128),
        _window("three splits of 128", [(400, 1)], 1, 4, 128, 150),
        _window("two splits of 192", [(400, 1), (90, 1)], 1, 4, 192, 100),
    ),
    "attention_csa": (
        _csa("tiny-a", [(60, 3), (17, 1)], 3, 4, 128, 16, 8, 0.3),
        _csa("tiny-c", [(90, 2)], 2, 12, 192, 24, 12, 0.3),
        _csa("flash decode", [(3000, 1)], 1, 64, 512, 128, 512),
        _csa("pro decode", [(9000, 1)], 1, 128, 512, 128, 1024, 0.1),
        _csa("flash, 14 queries", [(3000, 7), (700, 6)], 7, 64, 512, 128, 512, 0.5),
        _csa("empty lists", [(500, 1)], 1, 64, 512, 128, 512, 1),
    ),
    "attention_hca": (
        _hca("tiny-a", [(130, 3), (0, 1)], 3, 4, 128, 16, 4, 128),
        _hca("tiny-c", [(250, 16)], 16, 4, 192, 24, 3, 128),
        _hca("flash decode", [(9000, 1)], 1, 64, 512, 128, 300, 128),
        _hca("pro, chunk completes an entry", [(1022, 3), (1, 1)], 3, 128, 512, 128, 64, 128),
        _hca("room for far more than there is", [(300, 1)], 1, 16, 512, 128, 8192, 128),
    ),
    "indexer_topk": (
        _choice("tiny-a", [(40, 9), (0, 0), (3, 4)], 9, 16, 128, 30, 8),
        _choice("tiny-c", [(250, 5)], 5, 12, 128, 70, 12),
        _choice("flash decode", [(12003, 1), (2047, 1)], 1, 64, 128, 4000, 512),
        _choice("pro decode", [(20000, 1)], 1, 64, 128, 5001, 1024),
        _choice("flash prefill", [(8000, 3)], 3, 64, 128, 2001, 512),
        _choice("one is chosen", [(999, 2)], 2, 64, 128, 251, 1),
        _choice("no token", [(7, 0)], 0, 16, 128, 30, 8),
    ),
}
