"""Cases of the compressors in the widths that ship, and at every border of a block, beside the cases of the ops.

Flash has rows of 4096, Pro of 7168; main entries are 512 wide, index keys 128. What no kernel may read is NaN: padding
tokens, ring rows of no position or of blocks that are pooled already, and of the block before the open one its half B.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import torch
from torch import Tensor

from ds4export.ops import ALL_OPS
from ds4export.ops._cases import Gen
from ds4export.ops._define import Case
from tests.plugins.packed_cases import packed_case

Rows = list[tuple[int, int]]  # (position, new tokens) of each batch row
FLASH, PRO, SMALL, ODD = 4096, 7168, 40, 33
CSA, HCA, INDEX = "compress_csa", "compress_hca", "compress_index"
RATIO = {CSA: 4, HCA: 128, INDEX: 4}
WIDTH = {CSA: 512, HCA: 512, INDEX: 128}
LAST_POSITION = 1048575


def _ring(g: Gen, op: str, rows: Rows, slots: list[int], length: int, width: int) -> Tensor:
    """[S, length + 1, 2·c·width] with a slot to spare; NaN but for what an entry still needs."""
    m, overlap = RATIO[op], RATIO[op] == 4
    columns = 4 * width if overlap else 2 * width
    ring = torch.full((len(rows) + 1, length + 1, columns), torch.nan)
    for slot, (p, _) in zip(slots, rows, strict=True):
        open_block = p // m * m
        first = max(open_block - m, 0) if overlap else open_block
        made = g.f32(p - first, columns)
        if overlap:
            for half in (1, 3):  # B of u, B of s
                made[: open_block - first, half * width : (half + 1) * width] = torch.nan
        ring[slot, torch.arange(first, p) % length] = made
    return ring


def _case(
    op: str,
    name: str,
    tokens: int,
    rows: Rows,
    *,
    hidden: int = SMALL,
    width: int = 128,
    rope_dims: int = 64,
    spare: int = 0,
    capacity: int | None = None,
) -> Case:
    """`spare`: ring rows beyond those of an entry; `capacity`: entries, by default those needed and one more."""
    m, channels = RATIO[op], 2 if RATIO[op] == 4 else 1

    def make(g: Gen) -> tuple[object, ...]:
        slots = g.rng.permutation(len(rows) + 1)[: len(rows)].tolist()
        ring = _ring(g, op, rows, slots, channels * m + spare, width)
        entries = max(p + n for p, n in rows) // m + 1 if capacity is None else capacity
        cache = g.state(len(rows) + 1, entries + 1, width)
        for slot, (p, _) in zip(slots, rows, strict=True):
            cache[slot, p // m :] = torch.nan
        x = g.x(len(rows), tokens, hidden)
        for b, (_, n) in enumerate(rows):
            x[b, n:] = torch.nan
        wkv, wgate = (g.bf16(channels * width, hidden) * hidden**-0.5 for _ in range(2))
        ape, norm = g.f32(m, channels * width), g.bf16(width)
        positions, num_new = (torch.tensor(v) for v in zip(*rows, strict=True))
        state = (ring, cache, torch.tensor(slots), positions, num_new)
        tail = (1e-6, width) if op == INDEX else (1e-6,)
        return (x, wkv, wgate, ape, norm, g.freqs(rope_dims), *state, *tail)

    return Case(name, make)


def _borders(op: str) -> tuple[Case, ...]:
    """Chunks that start and end at every place of a block (HCA: around its borders), the first and later ones."""
    m = RATIO[op]
    if m == 4:
        return tuple(
            _case(
                op,
                f"every start and length, block {block}",
                2 * m + 3,
                [(block * m + start, n) for start, n in product(range(m), range(1, 2 * m + 4))],
            )
            for block in range(2)
        )
    lengths = [(0, 127), (0, 128), (0, 129), (1, 126), (1, 127), (127, 1), (127, 2), (64, 64)]
    later = [(255, 129), (256, 255), (129, 255), (300, 259), (128, 259), (383, 258), (257, 0)]
    return (
        _case(op, "borders of the first block", 129, lengths),
        _case(op, "borders of later blocks", 259, later),
    )


def _shipping(op: str) -> tuple[Case, ...]:
    """One decode step at the weights' true shape; batches and chunks at the true width of an entry."""
    m, width = RATIO[op], WIDTH[op]
    closing = 3 * m - 1
    decode = [(closing + i, i % 5 and 1) for i in range(130)]
    return (
        _case(op, "flash decode", 1, [(closing, 1)], hidden=FLASH, width=width),
        _case(op, "pro decode", 1, [(closing + m, 1), (m, 1)], hidden=PRO, width=width),
        _case(op, "decode of 9", 1, decode[:9], hidden=264, width=width),
        _case(op, "decode of 32", 1, decode[:32], hidden=64, width=width),
        _case(op, "decode of 130", 1, decode),
        _case(op, "prefill in tiles", 2 * m + 45, [(0, 2 * m + 45)], hidden=136, width=width),
        _case(
            op, "second chunk in tiles", 2 * m + 30, [(m + 1, 2 * m + 30), (m - 2, 7)], width=width
        ),
    )


def _common(op: str) -> tuple[Case, ...]:
    m = RATIO[op]
    ragged = [
        (m - 1, m + 1),
        (0, 0),
        (2 * m, 1),
        (5 * m + 1, m - 2),
        (m, 0),
        (0, m),
        (3 * m - 1, 2),
    ]
    late = (LAST_POSITION + 1 - m, m - 1)  # one short of an entry: the cache stays small
    return (
        *_borders(op),
        *_shipping(op),
        _case(op, "rows that are not whole pieces", 3, [(m - 2, 3), (0, 2)], hidden=ODD),
        _case(op, "many of them", m + 40, [(m - 2, m + 40), (m - 1, 1)], hidden=ODD),
        _case(op, "ragged", m + 1, ragged),
        _case(op, "spare rows", m + 2, [(2 * m - 1, m + 2), (9, 1), (0, 3)], spare=5),
        _case(op, "one token, spare rows", 1, [(2 * m - 1, 1), (m - 1, 1), (0, 1)], spare=5),
        _case(op, "short of an entry at the end of a million", m - 1, [late], capacity=2),
        _case(op, "nothing new", 2, [(m - 1, 0), (0, 0)]),
        _case(op, "nothing new of one token", 1, [(m - 1, 0), (0, 0)]),
        _case(op, "no token", 0, [(7, 0)]),
    )


def _packed(op: str, *cases: Case) -> tuple[Case, ...]:
    m = RATIO[op]
    border = [(m - 1, m + 1), (2 * m, 1), (0, m), (5, 0)]
    own = (
        _case(op, "over the border of a block", m + 1, border),
        _case(op, "decode", 1, [(m - 1, 1), (m, 1), (2 * m - 1, 0)], width=WIDTH[op]),
    )
    return tuple(packed_case(ALL_OPS[op], case) for case in (*own, *cases))


def _widths(op: str) -> tuple[Case, ...]:
    """Entries whose dims without rope are no whole blocks of 64, or end within a lane's four."""
    m = RATIO[op]
    rows = [(m - 1, m + 2), (0, m)]
    return (
        _case(op, "tiny-c", m + 2, rows, width=192),
        _case(op, "a last block of 46", m + 2, rows, width=60, rope_dims=14),
        _case(op, "a last block of 32", m + 2, rows, width=160),
    )


COMPRESS_CASES: dict[str, Sequence[Case]] = {
    CSA: (
        *_common(CSA),
        *_widths(CSA),
        *_packed(CSA, *_widths(CSA)[::2]),
        _case(CSA, "last entry of a million", 2, [(LAST_POSITION - 1, 2)], width=8, rope_dims=4),
    ),
    HCA: (
        *_common(HCA),
        *_widths(HCA),
        *_packed(HCA, *_widths(HCA)[::2]),
        _case(HCA, "last entry of a million", 1, [(LAST_POSITION, 1)]),
    ),
    INDEX: (*_common(INDEX), *_packed(INDEX)),
}
