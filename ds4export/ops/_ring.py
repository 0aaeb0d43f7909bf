"""State rows: rings addressed by absolute position, and pools addressed by slot (design 10-12).

A ring [S, R + 1, C] keeps the row of position s in row s mod R of its slot; row R is scratch that padding writes
to. Readers gather old rows, and only then the chunk's last rows are scattered: the data dependency keeps the order
when a runtime shares one buffer between `ring` and `ring_out`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ds4export.ops._body import T
from ds4export.ops._body_numerics import load, query_positions


def rows_before(ring_RC: Tensor, position: int, count: int) -> tuple[Tensor, Tensor]:
    """The `count` rows before `position`, oldest first, float32, and which of them exist."""
    at = torch.arange(position - count, position)
    return ring_RC[at % (len(ring_RC) - 1)].float(), at >= 0


def append_rows(ring_RC: Tensor, rows_nC: Tensor, position: int) -> None:
    """Write rows of positions position .. position+n-1 in place, the last R of them."""
    length = len(ring_RC) - 1
    at = torch.arange(position, position + len(rows_nC))[-length:]
    ring_RC[at % length] = rows_nC[-length:].to(ring_RC.dtype)


def pool_index(slots: T, rows: T) -> T:
    """slots [B], rows [B, n] -> (slot, row) pairs [B, n, 2] for GatherND and ScatterND on [S, R, C]."""
    slot = slots.unsqueeze(1).expand(rows.size_all())
    return rows.body.concat(2, slot.unsqueeze(2), rows.unsqueeze(2))


def gather_pool(pool: T, slots: T, rows: T) -> T:
    return pool.body.op("GatherND", pool, pool_index(slots, rows), dtype=pool.dtype)


def scatter_pool(pool: T, slots: T, rows: T, values: T) -> T:
    return pool.body.op("ScatterND", pool, pool_index(slots, rows), values, dtype=pool.dtype)


def history_and_append(rows: T, ring: T, slots: T, positions: T, num_new: T) -> tuple[T, T, T]:
    """-> (history [B, R + T, C] float32 of positions p-R .. p+T-1, ring_out, R).

    rows [B, T, C] in the ring's dtype. History rows of positions below 0 hold whatever the ring holds.
    """
    b = rows.body
    length, tokens = ring.size(1) - 1, rows.size(1)
    old_at = positions.unsqueeze(1) - length + b.arange(length)
    history = b.concat(1, gather_pool(ring, slots, old_at % length), rows)
    # the update is cut from the history, so that no runtime can scatter before it has gathered
    update = history.slice(1, length, length + tokens)
    t, n = b.arange(tokens), num_new.unsqueeze(1)
    keep = (t < n) & (t >= n - length)
    at = b.where(keep, query_positions(rows, positions) % length, length)
    return load(history), scatter_pool(ring, slots, at, update), length
