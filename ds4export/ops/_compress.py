"""What the three compressors share: gated pooling of blocks of tokens into cache entries.

    u_p = wkv·x_p,  s_p = wgate·x_p + ape[p mod m]              float32, p the absolute position
    HCA: entry j pools tokens mj .. mj+m-1;  softmax of s per channel over the rows
    CSA: entry j pools half A of tokens m(j-1) .. mj-1 and half B of tokens mj .. mj+m-1
    entry = rms(Σ softmax(s)·u, norm), rope at position j·m, cache rounding

`pending` [S, R + 1, 2·c·d] float32 is the ring of the rows u ++ s of the last R positions; `cache` [S, C + 1, d] holds
entry j in row j, and its last row is scratch. Rows of positions below 0 count as u = 0, s = -inf, whatever the ring
holds, and are selected away, never multiplied. Specification sections 5 and 8.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ds4export.ops._body import FLOAT, T
from ds4export.ops._body_numerics import load, query_positions, store
from ds4export.ops._body_numerics import rms as body_rms
from ds4export.ops._body_numerics import rope as body_rope
from ds4export.ops._body_numerics import rounded as body_rounded
from ds4export.ops._cases import Gen
from ds4export.ops._define import BOUNDARY, F32, INTS, WEIGHT, Case
from ds4export.ops._numerics import rms, rope, rounded, stored
from ds4export.ops._ring import append_rows, history_and_append, rows_before, scatter_pool

SCHEMA = (
    "(Tensor x, Tensor wkv, Tensor wgate, Tensor ape, Tensor norm, Tensor freqs, Tensor pending, Tensor cache, "
    "Tensor slots, Tensor positions, Tensor num_new, float eps) -> (Tensor, Tensor)"
)
INPUTS = {
    "x": BOUNDARY,
    "wkv": WEIGHT,
    "wgate": WEIGHT,
    "ape": F32,
    "norm": WEIGHT,
    "freqs": F32,
    "pending": F32,
    "cache": BOUNDARY,
    "slots": INTS,
    "positions": INTS,
    "num_new": INTS,
}
OUTPUTS = {"pending_out": F32, "cache_out": BOUNDARY}
ALIASES = {"pending_out": "pending", "cache_out": "cache"}


def compress(
    x: Tensor,
    wkv: Tensor,
    wgate: Tensor,
    ape: Tensor,
    norm: Tensor,
    freqs: Tensor,
    pending: Tensor,
    cache: Tensor,
    slots: Tensor,
    positions: Tensor,
    num_new: Tensor,
    eps: float,
    *,
    overlap: bool,
    finish: Callable[[Tensor], Tensor],
) -> tuple[Tensor, Tensor]:
    """The reference of all three: one row of the batch at a time; `finish` rounds an entry [1, d]."""
    pending, cache, m = pending.clone(), cache.clone(), len(ape)
    count = 2 * m if overlap else m
    for b, (slot, p, n) in enumerate(
        zip(slots.tolist(), positions.tolist(), num_new.tolist(), strict=True)
    ):
        u = x[b, :n].float() @ wkv.float().T
        s = x[b, :n].float() @ wgate.float().T + ape[torch.arange(p, p + n) % m]
        before, exists = rows_before(pending[slot], p, count)
        rows = torch.cat((before, torch.cat((u, s), -1)))
        append_rows(pending[slot], rows[count:], p)
        exists = torch.cat((exists, torch.ones(n, dtype=torch.bool)))[:, None]
        u, s = rows.chunk(2, -1)
        u, s = torch.where(exists, u, 0.0), torch.where(exists, s, -torch.inf)
        for j in range(p // m, (p + n) // m):
            at = j * m - (p - count)  # row of the block's first token
            weight = _block(s, at, m, overlap).softmax(0)
            pooled = rounded((weight * _block(u, at, m, overlap)).sum(0, keepdim=True), x)
            entry = rope(rounded(rms(pooled, norm, eps), x), torch.tensor([j * m]), freqs)
            cache[slot, j] = stored(finish(rounded(entry, x)), x)[0]
    return pending, cache


def _block(rows: Tensor, at: int, m: int, overlap: bool) -> Tensor:
    if not overlap:
        return rows[at : at + m]
    a, b = rows.chunk(2, -1)
    return torch.cat((a[at - m : at], b[at : at + m]))


def fake(x: Tensor, *args: Tensor | float) -> tuple[Tensor, Tensor]:
    pending, cache = args[5], args[6]
    return torch.empty_like(pending), torch.empty_like(cache)  # type: ignore[arg-type]


def body_compress(
    x: T,
    wkv: T,
    wgate: T,
    ape: T,
    norm: T,
    freqs: T,
    pending: T,
    cache: T,
    slots: T,
    positions: T,
    num_new: T,
    *,
    eps: float,
    overlap: bool,
    finish: Callable[[T], T],
) -> tuple[T, T]:
    b, m, xf = x.body, ape.size(0), load(x)
    u = b.matmul_t(xf, load(wkv))
    s = b.matmul_t(xf, load(wgate)) + ape.gather(query_positions(x, positions) % m)
    rows = b.concat(-1, u, s)
    history, pending_out, length = history_and_append(rows, pending, slots, positions, num_new)
    # entries that this chunk could complete: the first is the open block's
    number = (positions // m).unsqueeze(1) + b.arange((x.size(1) + m - 1) // m)  # [B, c]
    complete = number < ((positions + num_new) // m).unsqueeze(1)
    first, width = (number * m - m, m + m) if overlap else (number * m, m)
    at = first.unsqueeze(2) + b.arange(width)  # absolute positions [B, c, w]
    row = at - positions.unsqueeze(1).unsqueeze(2) + length
    row = b.op("Min", row.clip(0, None), history.size(1) - 1, dtype=row.dtype)
    block, exists = history.gather_rows(row), (at >= 0).unsqueeze(3)
    half = block.size_last() // 2
    u = b.where(exists, block.slice(-1, 0, half), 0.0)
    s = b.where(exists, block.slice(-1, half, half + half), float("-inf"))
    if overlap:
        u, s = _halves(u, m), _halves(s, m)
    weight = b.op("Softmax", s, dtype=FLOAT, axis=2)
    pooled = body_rounded((weight * u).sum(2, keepdims=False))
    entry = body_rounded(body_rms(pooled, norm, eps)).unsqueeze(2)
    entry = body_rounded(body_rope(entry, number * m, freqs)).squeeze(2)
    to = b.where(complete, number, cache.size(1) - 1)
    return pending_out, scatter_pool(cache, slots, to, store(finish(entry)))


def _halves(rows: T, m: T) -> T:
    """[B, c, 2m, 2d] -> half A of the first m rows, half B of the last m: [B, c, 2m, d]."""
    d = rows.size_last() // 2
    first, last = rows.slice(2, 0, m), rows.slice(2, m, m + m)
    return rows.body.concat(2, first.slice(-1, 0, d), last.slice(-1, d, d + d))


def cases(m: int, channels: int) -> tuple[Case, ...]:
    """Chunks that open, cross and close blocks; the first, a NaN-filled ring; no new tokens; ragged rows."""

    def case(name: str, tokens: int, rows: list[tuple[int, int]], *, nan: bool = False) -> Case:
        def make(g: Gen) -> tuple[object, ...]:
            batch, d, hidden = len(rows), 128, 40
            pending = g.state(batch + 1, channels * m + 1, 2 * channels * d, f32=True)
            cache = g.state(batch + 1, 200 // m + 8, d)
            if nan:
                pending, cache = (
                    torch.full_like(pending, torch.nan),
                    torch.full_like(cache, torch.nan),
                )
            weights = (
                g.bf16(channels * d, hidden),
                g.bf16(channels * d, hidden),
                g.f32(m, channels * d),
            )
            slots = torch.arange(batch).flip(0)
            positions, num_new = (torch.tensor(v) for v in zip(*rows, strict=True))
            x = g.x(batch, tokens, hidden)
            return (
                x,
                *weights,
                g.bf16(d),
                g.freqs(64),
                pending,
                cache,
                slots,
                positions,
                num_new,
                1e-6,
            )

        return Case(name, make)

    return (
        case("from the start", 2 * m + 3, [(0, 2 * m + 3)], nan=True),
        case("one token closes a block", 1, [(3 * m - 1, 1), (0, 1), (m, 1)]),
        case("chunk crosses blocks", m + 2, [(2 * m - 1, m + 2), (m + 1, 3), (0, m)]),
        case("no new tokens", 3, [(5, 0), (0, 0)]),
        case("long chunk", 5 * m + 1, [(m - 1, 5 * m + 1)]),
    )
