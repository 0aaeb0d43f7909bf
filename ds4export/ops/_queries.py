"""Going through a chunk's queries in blocks, so that gathered keys and scores stay small (design 8)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ds4export.ops._body import INT64, T


def in_query_blocks(at: T, values: Sequence[T], block: T, one_block: Callable[..., T]) -> T:
    """Apply `one_block(at, *values)` to blocks of at most `block` queries.

    `at` INT64 [B, T] positions and `values` [B, T, ...] are cut along T; results [B, t, C] are joined to [B, T, C].
    The last block repeats the last query where T is no multiple; what it yields for those is dropped. T >= 1.
    """
    b = at.body
    tokens = at.size(1)
    block = b.op("Min", block.clip(1, None), tokens, dtype=INT64)
    count = (tokens + block - 1) // block

    def step(i: T, _: tuple[T, ...]) -> tuple[tuple[T, ...], tuple[T, ...]]:
        rows = b.op("Min", i.reshape(1) * block + b.arange(block), tokens - 1, dtype=INT64)
        return (), (one_block(at.gather(rows, 1), *(v.gather(rows, 1) for v in values)),)

    (stacked,) = b.loop(count, (), step)  # [blocks, B, block, C]
    joined = stacked.transpose(1, 0, 2, 3)
    return joined.reshape(at.size(0), count * block, stacked.size_last()).slice(1, 0, tokens)
