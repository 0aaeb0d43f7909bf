"""What the three attention ops share: one query against a list of rows that are key and value at once.

    l_i = (q_h · kv_i)·d^-0.5;  M = max_i l_i
    o_h = Σ_i exp(l_i - M)·kv_i / (Σ_i exp(l_i - M) + exp(sink_h - M))      sink: a plain logit without a value
    then the inverse rope of o at the query's position

The list of query t: column c < window is position max(t - window + 1, 0) + c, none beyond t; then compressed entries.
Official numerics goes through the list in blocks of 64 with a running maximum M' and rounds P = exp(l - M') to bf16
before P·V. Padding queries yield zeros. Specification sections 7, 8.2 and 11 row 11.

`ring` [S, R + 1, d] keeps the window rows; this op reads it, then writes the chunk's rows (design 12).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ds4export.ops._body import FLOAT, INT64, T
from ds4export.ops._body_numerics import load, query_positions, store
from ds4export.ops._body_numerics import rope as body_rope
from ds4export.ops._body_numerics import rounded as body_rounded
from ds4export.ops._cases import Gen
from ds4export.ops._define import BOUNDARY, F32, INTS, CacheRows
from ds4export.ops._numerics import rope, rounded, stored
from ds4export.ops._queries import in_query_blocks
from ds4export.ops._ring import append_rows, history_and_append, rows_before
from ds4export.state import KV

LIST_BLOCK = 64
GATHERED_ELEMENTS = 1 << 23  # float32 values that one block of queries may gather: 32 MB
TAIL = {"sink": F32, "freqs": F32, "slots": INTS, "positions": INTS, "num_new": INTS}
OUTPUTS = {"o": BOUNDARY, "ring_out": BOUNDARY}
ALIASES = {"ring_out": "ring"}
RING = {"ring": CacheRows(KV, "kv")}
RING_AND_ENTRIES = {**RING, "entries": CacheRows(KV, "kv")}

# (keys [n, L, d] float32, valid [n, L]) of the compressed part of the lists of one batch row
Compressed = Callable[[int, int, Tensor], tuple[Tensor, Tensor]]


def list_attention(q_THd: Tensor, keys_TLd: Tensor, valid_TL: Tensor, sink_H: Tensor) -> Tensor:
    """float32 o [T, H, d]; q in the boundary dtype, keys float32 with zeros where not valid."""
    t, h, d = q_THd.shape
    top, total, acc = torch.full((t, h), -torch.inf), torch.zeros(t, h), torch.zeros(t, h, d)
    for at in range(0, keys_TLd.shape[1], LIST_BLOCK):
        keys, valid = keys_TLd[:, at : at + LIST_BLOCK], valid_TL[:, None, at : at + LIST_BLOCK]
        logits = torch.einsum("thd,tld->thl", q_THd.float(), keys) * d**-0.5
        logits = torch.where(valid, logits, -torch.inf)
        new_top = torch.maximum(top, logits.amax(-1))
        fade = torch.exp(top - new_top)
        p = torch.exp(logits - new_top.unsqueeze(-1))
        total = total * fade + p.sum(-1)
        acc = acc * fade.unsqueeze(-1) + torch.einsum("thl,tld->thd", rounded(p, q_THd), keys)
        top = new_top
    return acc / (total + torch.exp(sink_H - top)).unsqueeze(-1)


def attend(
    q: Tensor,
    kv: Tensor,
    ring: Tensor,
    sink: Tensor,
    freqs: Tensor,
    slots: Tensor,
    positions: Tensor,
    num_new: Tensor,
    window: int,
    compressed: Compressed | None,
) -> tuple[Tensor, Tensor]:
    """The reference of all three; `compressed(b, slot, at)` gives the other rows of the lists of batch row b."""
    ring, out = ring.clone(), torch.zeros_like(q)
    for b, (slot, p, n) in enumerate(
        zip(slots.tolist(), positions.tolist(), num_new.tolist(), strict=True)
    ):
        before, _ = rows_before(ring[slot], p, window - 1)
        history = torch.cat((before, kv[b, :n].float()))
        at = torch.arange(p, p + n)
        column = (at[:, None] - window + 1).clamp_min(0) + torch.arange(
            window
        )  # absolute positions
        valid = column <= at[:, None]
        keys = history[(column - (p - window + 1)).clamp_max(len(history) - 1)]
        if compressed is not None:
            more, ok = compressed(b, slot, at)
            keys, valid = torch.cat((keys, more), 1), torch.cat((valid, ok), 1)
        keys = torch.where(valid.unsqueeze(-1), keys, 0.0)
        o = rounded(list_attention(q[b, :n], keys, valid, sink), q)
        out[b, :n] = stored(rope(o, at, freqs, inverse=True), q)
        append_rows(ring[slot], kv[b, :n], p)
    return out.flatten(2), ring


def fake(q: Tensor, kv: Tensor, ring: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    return q.new_empty((*q.shape[:2], q.shape[2] * q.shape[3])), torch.empty_like(ring)


def _list_softmax(logits: T, sink: T) -> tuple[T, T]:
    """logits [B, t, H, L] with -inf where not valid -> (weights of the values, denominator [B, t, H, 1])."""
    b = logits.body
    sink = sink.reshape(1, 1, -1, 1)
    if not b.official:
        top = logits.max(-1)
        p = (logits - top).unary("Exp")
        return p, p.sum(-1) + (sink - top).unary("Exp")
    length = logits.size_last()
    short = (b.ints(LIST_BLOCK) - length % LIST_BLOCK) % LIST_BLOCK
    pads = b.vector(b.ints(0, 0, 0, 0, 0, 0, 0), short)
    padded = b.op("Pad", logits, pads, b.scalar(float("-inf"), FLOAT), dtype=FLOAT)
    blocks = padded.reshape(0, 0, 0, -1, LIST_BLOCK)  # [B, t, H, n, 64]
    i = b.arange(blocks.size(3))
    earlier = i.unsqueeze(0) <= i.unsqueeze(1)  # [n, n]: block j counts for block i
    peaks = b.where(earlier, blocks.max(-1, keepdims=False).unsqueeze(3), float("-inf"))
    running = peaks.max(-1)  # [B, t, H, n, 1]
    top = running.max(3)
    p = (blocks - running).unary("Exp")
    fade = (running - top).unary("Exp")
    total = (p * fade).sum(-1, keepdims=False).sum(-1)
    weights = (body_rounded(p) * fade).reshape(0, 0, 0, -1).slice(3, 0, length)
    return weights, total + (sink - top.squeeze(4)).unary("Exp")


# (at [B, t], more blocked values) -> keys [B, t or 1, n, d] and valid [B, t, n]
BodyCompressed = Callable[..., tuple[T, T]]


def body_attend(
    q: T,
    kv: T,
    ring: T,
    sink: T,
    freqs: T,
    slots: T,
    positions: T,
    num_new: T,
    *,
    window: int,
    compressed: BodyCompressed | None = None,
    blocked: tuple[T, ...] = (),
    gathered: T | None = None,
) -> tuple[T, T]:
    """`compressed(at, *blocked)` gives the other rows of a block of lists; `gathered` is their size per query."""
    b = q.body
    history, ring_out, length = history_and_append(kv, ring, slots, positions, num_new)
    live_to = (positions + num_new).unsqueeze(1)
    width = q.size(3)
    size = slots.size(0) * width * window
    block = b.ints(GATHERED_ELEMENTS) // (size if gathered is None else size + gathered)
    origin = positions - length  # the position of history row 0

    def one_block(at: T, qs: T, *values: T) -> T:
        column = (at.unsqueeze(2) - (window - 1)).clip(0, None) + b.ints(
            *range(window)
        )  # [B, t, W]
        valid = (column <= at.unsqueeze(2)) & (at < live_to).unsqueeze(2)
        row = column - origin.unsqueeze(1).unsqueeze(2)
        row = b.op("Min", row, history.size(1) - 1, dtype=INT64)
        keys = b.where(valid.unsqueeze(3), history.gather_rows(row), 0.0)
        parts = [(keys, valid), *([compressed(at, *values)] if compressed else [])]
        logits = [b.where(ok.unsqueeze(2), _scores(qs, rows), float("-inf")) for rows, ok in parts]
        weights, total = _list_softmax(b.concat(-1, *logits) if compressed else logits[0], sink)
        o = _weighted(weights.slice(3, 0, window) if compressed else weights, keys)
        if compressed:
            o = o + _weighted(weights.slice(3, window, weights.size_last()), parts[1][0])
        o = body_rounded(o / total)
        o = b.where((at < live_to).unsqueeze(2).unsqueeze(3), o, 0.0)
        return body_rope(o, at, freqs, inverse=True).reshape(0, 0, -1)

    out = in_query_blocks(query_positions(q, positions), (load(q), *blocked), block, one_block)
    return store(out), ring_out


def _scores(q: T, rows: T) -> T:
    """q [B, t, H, d], rows [B, t, n, d] (or [B, 1, n, d], shared) -> [B, t, H, n]."""
    b = q.body
    root = q.size_last().cast(FLOAT).unary("Sqrt")
    return b.matmul(q, rows.transpose(0, 1, 3, 2)) * (1.0 / root)


def _weighted(weights: T, rows: T) -> T:
    return weights.body.matmul(weights, rows)


def case_inputs(
    g: Gen,
    rows: list[tuple[int, int]],
    tokens: int,
    heads: int,
    width: int,
    window: int,
    spare: int,
    nan: bool,
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """(q, kv, ring) and (sink, freqs, slots, positions, num_new) of one case."""
    batch = len(rows)
    ring = g.state(batch + 1, window + spare + 1, width)
    if nan:
        ring[:] = torch.nan
    slots = torch.arange(batch).flip(0)
    positions, num_new = (torch.tensor(v) for v in zip(*rows, strict=True))
    head = g.x(batch, tokens, heads, width), g.x(batch, tokens, width), ring
    return head, (g.f32(heads), g.freqs(width // 2), slots, positions, num_new)
