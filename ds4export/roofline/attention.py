"""Ops that read and write the state of sequences: sparse attention, the indexer, the compressors.

Owns their bytes, operations and launches; choices as in plugins/sparse_attention/*_launch.cu, tiles.cuh and
plugins/indexer_topk/indexer_topk_launch.cu. A chunk is `tokens` new tokens of each of `batch` sequences that hold
`context` tokens after it. Packed rows are widened in shared memory: they change bytes and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ds4export.config import ModelConfig
from ds4export.roofline.devices import Device
from ds4export.roofline.kernel import BF16, F32, INT64, Kernel, Unit, ceil_div
from ds4export.roofline.layouts import Layout
from ds4export.roofline.linears import Matrix, linear

BLOCK = 64  # keys
MOST_SPLIT_BLOCKS, LIST_BYTES = 192, 8
INDEX_TILE, INDEX_SPLIT_BLOCKS, FAN_IN = 128, 384, 16
# Heads on one read of a key row, and the shared memory that takes.
HEAD_TILES = ((64, 227 << 10), (32, 163 << 10), (16, 99 << 10))


@dataclass(frozen=True)
class Chunk:
    """New tokens of a step: `tokens` of each of `batch` sequences, which then hold `context` tokens."""

    batch: int
    tokens: int
    context: int

    @property
    def rows(self) -> int:
        """New tokens of all sequences."""
        return self.batch * self.tokens

    def visible(self, ratio: int) -> list[int]:
        """Entries that each query of one sequence may see."""
        start = self.context - self.tokens
        return [(start + t + 1) // ratio for t in range(self.tokens)] if ratio else [0]


@dataclass(frozen=True)
class Keys:
    """Key rows of the queries of one sequence. Those of the chunk itself are bf16 and no state yet."""

    read: int  # by all queries, added up
    fresh: int  # of those, rows of the chunk itself
    rows: int  # different ones, the chunk's own among them


def keys_of_queries(c: ModelConfig, ratio: int, chunk: Chunk) -> Keys:
    """Rows of the window and, with a ratio, entries that are chosen (4) or visible (128)."""
    start, window = chunk.context - chunk.tokens, c.sliding_window
    near = sum(min(start + t + 1, window) for t in range(chunk.tokens))
    fresh = sum(min(t + 1, window) for t in range(chunk.tokens))
    rows = min(chunk.context, window + chunk.tokens - 1)
    if not ratio:
        return Keys(near, fresh, rows)
    visible = chunk.visible(ratio)
    taken = sum(min(v, c.index_topk) for v in visible) if ratio == 4 else sum(visible)
    return Keys(near + taken, fresh, rows + min(taken, visible[-1]))


def attention(
    c: ModelConfig, ratio: int, chunk: Chunk, device: Device, layout: Layout = Layout.NATIVE
) -> tuple[Kernel, ...]:
    """attend [merge] append: window rows, and with a ratio the entries that are chosen (4) or visible (128)."""
    heads, d, queries = c.num_attention_heads, c.head_dim, chunk.rows
    fresh_row, kept_row = d * BF16, layout.kv_bytes(c)
    keys = keys_of_queries(c, ratio, chunk)
    per_entry_list = {0: 0, 4: c.index_topk, 128: chunk.context // 128 + 1}[ratio]
    most_keys = c.sliding_window + per_entry_list
    tile = _heads_per_tile(heads, queries, most_keys, device)
    tiles = queries * ceil_div(heads, tile)
    wanted = min(device.multiprocessors, MOST_SPLIT_BLOCKS) // tiles
    splits = max(1, min(wanted, ceil_div(most_keys, BLOCK)))
    q = queries * heads * d * BF16
    lists = queries * c.index_topk * INT64 if ratio == 4 else 0
    flops = 4 * heads * d * keys.read * chunk.batch
    partial = queries * splits * heads * (d * F32 + LIST_BYTES) if splits > 1 else 0
    list_bytes = keys.fresh * fresh_row + (keys.read - keys.fresh) * kept_row
    read_again = ceil_div(heads, tile) * list_bytes * chunk.batch
    attend = Kernel(
        "attend", tiles * splits,
        weights=heads * F32, state=(keys.rows - chunk.tokens) * kept_row * chunk.batch,
        activations=2 * q + queries * fresh_row + lists,
        flops=flops, unit=Unit.BF16, executed=flops * max(1, tile / heads),
        loaded=2 * q * splits + read_again + lists, again=((partial, partial),),
    )  # fmt: skip
    kept = chunk.batch * min(chunk.tokens, c.sliding_window)
    source, ring = kept * fresh_row, kept * kept_row
    append = Kernel("append", queries, state=ring, loaded=source + ring, again=((source, source),))
    if splits == 1:
        return attend, append
    merge = Kernel(
        "merge", queries * heads, flops=2 * partial / F32, loaded=partial + q, again=((partial, partial),)
    )  # fmt: skip
    return attend, merge, append


def _heads_per_tile(heads: int, queries: int, most_keys: int, device: Device) -> int:
    for tile, shared in HEAD_TILES[:-1]:
        blocks = queries * ceil_div(heads, tile) * ceil_div(most_keys, BLOCK)
        if heads >= tile and device.shared >= shared and blocks >= device.multiprocessors:
            return tile
    return HEAD_TILES[-1][0]


def indexer_topk(
    c: ModelConfig, chunk: Chunk, device: Device, layout: Layout = Layout.NATIVE
) -> tuple[Kernel, ...]:
    """score [merge ...]: every visible index key against every query of its sequence."""
    heads, d, k, queries = c.index_n_heads, c.index_head_dim, c.index_topk, chunk.rows
    visible = chunk.visible(4)
    pairs = sum(visible) * chunk.batch
    keys = visible[-1] * layout.key_bytes(c)
    wanted = min(2 * device.multiprocessors, INDEX_SPLIT_BLOCKS) // queries
    splits = max(1, min(wanted, ceil_div(chunk.context // 4, INDEX_TILE)))
    # Blocks that run together walk the same keys together: from memory once for each such wave.
    waves = ceil_div(chunk.tokens, 2 * device.multiprocessors)
    lists: float = queries * splits * min(k, ceil_div(visible[-1], splits)) * LIST_BYTES
    q = queries * heads * d * BF16
    score = Kernel(
        "score", queries * splits,
        state=keys * chunk.batch,
        activations=q + queries * (heads * BF16 + k * INT64),
        flops=pairs * heads * (2 * d + 2), unit=Unit.BF16, executed=pairs * heads * (2 * d + 2),
        loaded=q * splits + pairs * layout.key_bytes(c),
        again=(((waves - 1) * keys * chunk.batch, keys), (lists if splits > 1 else 0, lists)),
    )  # fmt: skip
    rounds: list[Kernel] = []
    parts = splits
    while parts > 1:
        left = ceil_div(parts, FAN_IN)
        rounds.append(Kernel("merge", queries * left, loaded=lists, again=((lists, lists),)))
        lists *= left / parts
        parts = left
    return (score, *rounds)


def compress(
    c: ModelConfig, width: int, ratio: int, chunk: Chunk, entry_bytes: int
) -> tuple[Kernel, ...]:
    """project, pool [append]: rows u ++ s, and the blocks that are complete become entries; averaged over positions."""
    overlap = 2 if ratio == 4 else 1
    channels, rows, entries = overlap * width, chunk.rows, chunk.rows / ratio
    product = Matrix(2 * channels, c.hidden_size, bits=16, result=F32, quantised=False)
    made = rows * 2 * channels * F32
    kept = min(made, chunk.batch * overlap * ratio * 2 * channels * F32)
    # An entry reads u and s of its width in overlap·ratio rows; those of the chunk itself lie in the workspace.
    read = entries * overlap * ratio * 2 * width * F32
    held = min(read, chunk.batch * overlap * ratio * 2 * width * F32)
    pool = Kernel(
        "pool", max(1, entries), weights=width * BF16, state=held + entries * entry_bytes,
        flops=entries * overlap * ratio * width * 6 + entries * width * 20,
        loaded=read + entries * entry_bytes, again=((read - held, made),),
    )  # fmt: skip
    if chunk.tokens == 1:  # rows are made in the ring at once
        return (*(_into_ring(k, ratio * channels, made, made) for k in linear(product, rows)), pool)
    append = Kernel(
        "append", kept / (2 * channels * F32), state=kept, loaded=2 * kept, again=((kept, kept),)
    )
    project = (_into_ring(k, ratio * channels, made, 0) for k in linear(product, rows))
    return (*project, pool, append)


def _into_ring(kernel: Kernel, ape: int, made: float, state: float) -> Kernel:
    """The product's result is no output of the op: it goes to the ring, or to a workspace; ape is added to it."""
    return replace(
        kernel,
        weights=kernel.weights + ape * F32,
        activations=kernel.activations - made,
        state=state,
        again=(*kernel.again, (made - state, made)),
    )
