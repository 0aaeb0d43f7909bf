"""The small launches that race_free.py proves, by the readable name of the kernel. Each begins as launchers begin them.

Sizes are the smallest that show every barrier at work: two blocks, one of them ragged; one more chunk than a ring of
stages holds; a padded token where there is one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from tests.plugins.race_free import Argument, Data, Fields, Launch, P

MOST_SHARED = 227 << 10
NONE = 2**64 - 1  # -1 in an int64
SELECTION = (
    "where selection is needed, which candidates are kept and where they go depends on the scores (histograms by"
    " atomics in shared memory, stores at data-dependent places, a sort whose exchanges depend on values), and"
    " sentryward follows no control that depends on data. ThreadSanitizer on the host covers it, on the op's cases"
)

PACKED = (
    "which rows of a list are packed is read back from shared memory, and sentryward follows no control that depends on"
    " data. The same barriers stand in the instance of native rows, which is proved where its size allows, and"
    " ThreadSanitizer on the host covers this one, on the op's cases"
)
SIZE = (
    "the proof needs more time than it is given here. The narrowest instance of the same template is proved, and"
    " ThreadSanitizer on the host covers this one, on the op's cases"
)


def launches_of(kernel: str) -> list[Launch]:
    """Those of every pattern that the kernel's name begins with; an empty list: nobody wrote one."""
    return [
        launch
        for pattern, make in TABLE.items()
        if (found := re.match(pattern, kernel))
        for launch in make(found)
    ]


def _linear(
    rows: int, columns: int, tokens: int, groups: int = 1, x_columns: int = 0
) -> dict[int, Argument]:
    """struct Linear of common/linear.cuh; what is not named is a pointer."""
    return {
        16: rows,
        20: columns,
        24: 0,
        40: tokens,
        48: x_columns or columns,
        52: groups,
        80: 10.0,
    }


def _stream(m: re.Match[str]) -> Iterator[Launch]:
    op, per_block, aligned, quantises = m[1], 8 * int(m[2]), m[3] == "true", m[4] == "true"
    groups = 2 if op == "grouped_linear" else 1
    columns = 640 if aligned else 333
    padded = -(-columns // 128) * 128
    tokens = 3 if quantises else per_block + 3
    x_columns = padded if op in ("linear_fp8", "shared_expert") and not quantises else columns
    yield Launch(
        f"20 x {columns}, {tokens} tokens" + (", 2 groups" if groups == 2 else ""),
        (2, 1 if quantises else 2, groups),
        256,
        (Fields(_linear(20, columns, tokens, groups, x_columns)),),
        shared=tokens * (padded + 8) * 2 if quantises else 0,
    )


def _tiles(m: re.Match[str]) -> Iterator[Launch]:
    op, per_block = m[1], 64 if m[2] == "Up" else 128
    rows, groups = per_block + 2, 2 if op == "grouped_linear" else 1
    # Three stages of 128 columns where codes are multiplied as e4m3, of 64 elsewhere.
    columns = 400 if op in ("linear_fp8", "shared_expert") else 336
    yield Launch(
        f"{rows} x {columns}, 50 tokens" + (", 2 groups" if groups == 2 else ""),
        (2, 1, groups),
        256,
        (Fields(_linear(rows, columns, 50, groups, -(-columns // 128) * 128)),),
        shared=MOST_SHARED,
        sources=((0, 32),),
    )


def _experts(m: re.Match[str]) -> Iterator[Launch]:
    """Three tokens of two places at two experts; one expert is whole, the other's entry of the table is empty."""
    streamed, up, bits = m[1] == "stream", m[2] == "Up", int(m[3])
    width = 640
    rows, columns = (96 if not streamed else 32, width)
    hidden, inner = (columns, rows) if up else (rows, columns)
    matrix_bytes, scale_bytes = hidden * inner * bits // 8, hidden * inner // 32
    per_tile = 8 if streamed else 64
    per_block = 16 if streamed else 64 if up else 128
    tiles = (0, 0, 3, 1, 3, 3, 1, 6, 0)
    arguments: tuple[Argument, ...] = (
        *(P, P, Data("u64", (1, 0)), P, P, P, P, P, P),
        Data("u32", (0, 3, 5, 1, 2, 4)),
        Data("u32", tiles),
        *(matrix_bytes, scale_bytes, 10.0, 3, 2, 3, 0, 2, hidden, inner),
        *(-(-hidden // 128) * 128, -(-inner // 128) * 128, 6, 3, per_tile, 0),
    )
    yield Launch(
        f"{rows} rows of {columns}, 6 pairs in 2 tiles, one entry empty",
        (-(-rows // per_block), 3, 1),
        256,
        arguments,
        shared=0 if streamed else MOST_SHARED,
        sources=() if streamed else ((6,) if up else (7,)),
    )


def _attend(m: re.Match[str]) -> Iterator[Launch]:
    """One query of as many heads as the tile, less four: a list longer than the ring of chunks, where heads are narrow.

    Wide heads run the same code, at a cost that allows for two blocks of keys.
    """
    width, heads = int(m[1]), int(m[2]) - 4
    window, num_chosen = (100, 40) if width < 512 else (50, 30)
    chosen = Data("u64", (*range(num_chosen - 5), *[NONE] * 5))
    before: tuple[Argument, ...] = (P, P, P, P, chosen, P, P)
    at: tuple[Argument, ...] = (Data("u64", (1,)), Data("u64", (150,)), Data("u64", (1,)))
    sizes = (1, heads, 32, window, window + 11, 41, num_chosen, 0)
    for splits in (1, 2) if width == 64 else (1,):
        partial: tuple[Argument, ...] = (0, 0) if splits == 1 else (P, P)
        yield Launch(
            f"a query, {heads} heads, list of {window + num_chosen}, {splits} split{'s' * (splits - 1)}",
            (1, splits, 1),
            256,
            (*before, *at, P, *partial, *sizes),
            shared=MOST_SHARED,
            sources=(1, 2, 3),
            excepted=PACKED if m[3] == "true" else SIZE if width == 512 else "",
        )


def _merge_splits(m: re.Match[str]) -> Iterator[Launch]:
    at = (Data("u64", (150,)), Data("u64", (1,)))
    yield Launch(
        "a query and a padded one, 2 heads, 3 splits", (4, 1, 1), 128, (P, P, P, P, *at, P, 2, 2, 32, 3)
    )  # fmt: skip


def _score(m: re.Match[str]) -> Iterator[Launch]:
    heads = int(m[2]) - 4
    at = (Data("u64", (1,)), Data("u64", (2803,)), Data("u64", (1,)))
    sizes = (0.01, 1, heads, 801, 1024, 4)
    yield Launch(
        f"a query, {heads} heads, 701 keys in 2 splits, all kept",
        *((1, 2, 1), 256, (P, P, P, *at, P, P, P, *sizes), MOST_SHARED),
        excepted=SIZE if m[2] == "64" else "",
    )
    yield Launch(
        f"a query, {heads} heads, 701 keys, sorted",
        *((1, 1, 1), 256, (P, P, P, *at, P, 0, 0, *sizes), MOST_SHARED),
        excepted=SELECTION,
    )


def _merge_lists(m: re.Match[str]) -> Iterator[Launch]:
    counts = Data("u32", (4, 4, 2))
    yield Launch("3 lists, all 10 kept", (1, 1, 1), 256, (P, counts, P, P, P, 3, 16, 12))
    few = (P, counts, P, P, P, 3, 16, 4)
    yield Launch("3 lists, 4 of 10 kept", (1, 1, 1), 256, few, excepted=SELECTION)


def _norm(m: re.Match[str]) -> Iterator[Launch]:
    width = 4104 if m[2] == "8" else 1031
    yield Launch(f"2 rows of {width}", (2, 1, 1), 256, (P, P, P, 2, width, 1e-6))


def _hash(m: re.Match[str]) -> Iterator[Launch]:
    table = Data("u64", tuple(7 * i % 16 for i in range(60)))
    yield Launch(
        "2 tokens, one with an id past the table, 6 of 16 experts",
        (2, 1, 1),
        256,
        (P, P, Data("u64", (3, 12)), table, P, P, 256, 16, 10, 6, 1.5),
    )


def _hc_pre(m: re.Match[str]) -> Iterator[Launch]:
    arguments = (P, P, P, P, P, P, P, P, 4, 1032, 20, 1e-6, 1e-6)
    yield Launch("2 tokens of 1032 columns", (2, 1, 1), 256, arguments, shared=2064)


def _hc_head(m: re.Match[str]) -> Iterator[Launch]:
    rows = Data("u64", (1, NONE))
    arguments = (P, P, P, P, P, rows, 2, 3, P, 4, 1032, 1e-6, 1e-6)
    yield Launch("2 rows of 1032 columns, one absent", (2, 1, 1), 256, arguments, shared=2064)


def _query_heads(m: re.Match[str]) -> Iterator[Launch]:
    width = 512 if m[1] == "true" else 70
    arguments = (P, Data("u64", (150,)), P, P, 2, 9, width, 32, 1e-6)
    yield Launch(f"2 tokens, 9 heads of {width}", (2, 1, 1), 256, arguments)


def _index_query(m: re.Match[str]) -> Iterator[Launch]:
    arguments = (P, Data("u64", (150,)), P, P, 2, 19, int(m[1]) // 4)
    yield Launch(f"2 tokens, 19 heads of {m[1]}", (2, 1, 1), 256, arguments)


def _kv_row(m: re.Match[str]) -> Iterator[Launch]:
    width = 512 if m[1] == "true" else 134
    arguments = (P, P, Data("u64", (150,)), P, P, 5, 5, width, 32, 1e-6)
    yield Launch(f"5 rows of {width}", (2, 1, 1), 128, arguments)


def _rows(at: int, position: int, num_new: int, ring: int, columns: int) -> dict[int, Argument]:
    """struct Rows of compress_kv.cuh at an offset, of one sequence."""
    return {
        at + 16: Data("u64", (1,)),
        at + 24: Data("u64", (position,)),
        at + 32: Data("u64", (num_new,)),
        at + 40: num_new + 1,
        at + 44: ring,
        at + 48: columns,
    }


def _project(m: re.Match[str]) -> Iterator[Launch]:
    """A chunk whose last token is padding."""
    many = m[1] == "many"
    tokens = 50 if many else 8 * int(m[2]) + 3
    rows, hidden = (130, 264) if many else (20, 640 if m[3] == "true" else 333)
    fields = {**_rows(32, 10, tokens - 1, 8, 2 * rows), 88: tokens, 96: rows, 100: hidden, 104: 4}
    yield Launch(
        f"{rows} x {hidden}, {tokens} tokens, one padded",
        (2, 1 if many else 2, 2),
        256,
        (Fields(fields),),
        shared=MOST_SHARED if many else 0,
        sources=((0, 16),) if many else (),
    )


def _pool(m: re.Match[str]) -> Iterator[Launch]:
    """A chunk that completes two entries, of rows of the ring and of the chunk, in either layout of the cache."""
    ratio, width, threads = {"Csa": (4, 512, 128), "Hca": (128, 512, 512), "Index": (4, 128, 32)}[
        m[1]
    ]
    position, num_new = (10, 6) if ratio == 4 else (250, 134)
    columns, overlap = (4 * width, 2) if ratio == 4 else (2 * width, 1)
    packed = 584 if width == 512 else 68
    for row_bytes in (2 * width, packed):
        rows = Fields(_rows(0, position, num_new, overlap * ratio, columns))
        yield Launch(
            f"2 entries of {width} in rows of {row_bytes} B",
            (2, 1, 1),
            threads,
            (rows, P, P, P, 2, 11, row_bytes, ratio, width, 32, 1e-6),
        )


TABLE: dict[str, Callable[[re.Match[str]], Iterator[Launch]]] = {
    r"ds4_linear::stream<ds4::(\w+)::\w+, (\d), (true|false), (true|false)>": _stream,
    r"ds4_linear::tiles<ds4::(\w+)::(\w+)>": _tiles,
    r"ds4::moe::(stream|tile)_experts<ds4::moe::(Up|Down), ds4::Fp(\d)Weight,": _experts,
    r"ds4::sparse_attention::attend<ds4::sparse_attention::Config<(\d+), (\d+), \d, (true|false)": _attend,
    r"ds4::sparse_attention::merge<(\d+)>": _merge_splits,
    r"ds4::indexer_topk::score<ds4::indexer_topk::Config<(\d+), (\d+)": _score,
    r"ds4::indexer_topk::merge": _merge_lists,
    r"ds4::rms_norm::norm<(\d+), (\d)>": _norm,
    r"ds4::route::hash<": _hash,
    r"ds4::hc_pre::finish<": _hc_pre,
    r"ds4::hc_head::finish<": _hc_head,
    r"ds4::query_heads::rotate_heads<(true|false)>": _query_heads,
    r"ds4::index_query::rotate_and_quantise<(\d+)>": _index_query,
    r"ds4::compress_kv::project_(many|few)(?:<(\d), (true|false)>)?": _project,
    r"ds4::compress_kv::pool<ds4::compress_kv::(\w+)>": _pool,
    r"ds4::kv_row::finish<(true|false)>": _kv_row,
}
