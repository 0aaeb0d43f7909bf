"""More cases of each op than its definition carries: borders of chunks, blocks and tiles, NaN, ties, extremes.

A case is drawn in both numerics. Most are a case of the definition with some inputs changed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ds4export.ops import (
    ALL_OPS,
    attention_csa,
    attention_hca,
    attention_window,
    grouped_linear,
    hc_head,
    hc_pre,
    head,
    index_query,
    indexer_topk,
    kv_row,
    moe,
    query_heads,
    rms_norm,
    route_scores,
    shared_expert,
)
from ds4export.ops._cases import Gen
from ds4export.ops._define import Case

LAST_POSITION = 1_048_575
Inputs = dict[str, Tensor]
Rows = Sequence[tuple[int, int]]  # (position, number of new tokens) of each row of the batch


def varied(op_name: str, base: Case, name: str, change: Callable[[Gen, Inputs], object]) -> Case:
    """`base` with `change(gen, inputs)` applied to its tensors by name."""

    def make(g: Gen) -> tuple[object, ...]:
        arguments = base.make(g)
        names = ALL_OPS[op_name].inputs
        inputs = dict(zip(names, arguments[: len(names)], strict=True))
        change(g, inputs)
        return (*inputs.values(), *arguments[len(names) :])

    return Case(name, make)


def base(op_name: str, index: int = 0) -> Case:
    return ALL_OPS[op_name].cases[index]


def nan_padding(*names: str) -> Callable[[Gen, Inputs], None]:
    """Fill what lies beyond num_new with NaN."""

    def change(_: Gen, inputs: Inputs) -> None:
        for b, n in enumerate(inputs["num_new"].tolist()):
            for name in names:
                inputs[name][b, n:] = torch.nan

    return change


def nan_state(*names: str) -> Callable[[Gen, Inputs], None]:
    """Fill with NaN what the sequences have not written, and all of the slots that are not theirs."""

    def change(_: Gen, inputs: Inputs) -> None:
        for name in names:
            old = inputs[name].clone()
            inputs[name][:] = torch.nan
            rows = zip(inputs["slots"].tolist(), inputs["positions"].tolist(), strict=True)
            for slot, p in rows:
                written = min(p, old.shape[1] - 1)
                at = torch.arange(p - written, p) % (old.shape[1] - 1)
                inputs[name][slot, at] = old[slot, at]

    return change


def longer_ring(name: str, spare: int) -> Callable[[Gen, Inputs], None]:
    def change(g: Gen, inputs: Inputs) -> None:
        old = inputs[name]
        shape = (old.shape[0], old.shape[1] + spare, old.shape[2])
        inputs[name] = g.f32(*shape) if old.dtype == torch.float32 else g.x(*shape)

    return change


def both(*changes: Callable[[Gen, Inputs], object]) -> Callable[[Gen, Inputs], None]:
    def change(g: Gen, inputs: Inputs) -> None:
        for one in changes:
            one(g, inputs)

    return change


def zeroed(*names: str) -> Callable[[Gen, Inputs], None]:
    def change(_: Gen, inputs: Inputs) -> None:
        for name in names:
            inputs[name] = torch.zeros_like(inputs[name])

    return change


def scaled(name: str, factor: float) -> Callable[[Gen, Inputs], None]:
    def change(_: Gen, inputs: Inputs) -> None:
        inputs[name] = inputs[name] * factor

    return change


def first_row(name: str, value: float) -> Callable[[Gen, Inputs], None]:
    """One row of NaN, infinity or zeros must not touch its neighbours."""

    def change(_: Gen, inputs: Inputs) -> None:
        inputs[name].flatten(0, -2)[0] = value

    return change


def compress_case(
    op_name: str, name: str, tokens: int, rows: Rows, change: Callable[[Gen, Inputs], object]
) -> Case:
    """A chunk at the given positions, with room for every entry and one more."""
    m = 128 if op_name == "compress_hca" else 4
    channels, d, hidden = (1 if m == 128 else 2), 128, 24

    def make(g: Gen) -> tuple[object, ...]:
        slots, entries = len(rows) + 2, max(p + n for p, n in rows) // m
        inputs = {
            "x": g.x(len(rows), tokens, hidden),
            "wkv": g.bf16(channels * d, hidden),
            "wgate": g.bf16(channels * d, hidden),
            "ape": g.f32(m, channels * d),
            "norm": g.bf16(d),
            "freqs": g.freqs(64),
            "pending": g.f32(slots, channels * m + 1, 2 * channels * d),
            "cache": g.x(slots, entries + 1, d),
            "slots": torch.arange(len(rows)).flip(0) + 1,
            "positions": torch.tensor([p for p, _ in rows]),
            "num_new": torch.tensor([n for _, n in rows]),
        }
        change(g, inputs)
        tail = (1e-6, d) if op_name == "compress_index" else (1e-6,)
        return (*inputs.values(), *tail)

    return Case(name, make)


def _compress_cases(op_name: str) -> tuple[Case, ...]:
    m = 128 if op_name == "compress_hca" else 4
    padding, holes = nan_padding("x"), nan_state("pending", "cache")
    ragged = [(m - 1, m + 1), (0, 0), (2 * m, 1), (5 * m + 1, m - 2)]
    phases = [(3 * m + k, 1) for k in (0, 1, m // 2, m - 2, m - 1)]
    return (
        compress_case(
            op_name, "ragged, NaN padding and holes", m + 1, ragged, both(padding, holes)
        ),
        compress_case(op_name, "decode in every phase", 1, phases, holes),
        compress_case(op_name, "exactly one block", m, [(0, m), (m, m)], holes),
        compress_case(op_name, "one short of a block", m - 1, [(0, m - 1), (m, m - 1)], holes),
        compress_case(
            op_name,
            "spare rows",
            m,
            [(m + 1, m), (0, 3)],
            both(longer_ring("pending", 3), nan_state("pending")),
        ),
        compress_case(op_name, "longer than the ring", 4 * m + 3, [(m // 2, 4 * m + 3)], holes),
        compress_case(op_name, "no row has new tokens", 2, [(m - 1, 0), (0, 0)], padding),
        compress_case(op_name, "large and equal scores", m, [(0, m)], zeroed("wgate", "ape")),
        compress_case(op_name, "scores far apart", m, [(0, m)], scaled("ape", 60.0)),
    )


def _at_last_position(_: Gen, inputs: Inputs) -> None:
    inputs["positions"] = torch.full_like(inputs["positions"], LAST_POSITION)


def _equal_keys(_: Gen, inputs: Inputs) -> None:
    """Ties across the border of the choice: every key twice."""
    keys = inputs["keys"]
    keys[:, 1::2] = keys[:, : keys.shape[1] - 1 : 2]


def _rows_none(_: Gen, inputs: Inputs) -> None:
    inputs["rows"][:, ::2] = -1


def _attention_cases(op_name: str) -> tuple[Case, ...]:
    nan_input, holes = nan_padding("q", "kv"), nan_state("ring")
    make: dict[str, Callable[..., Case]] = {
        "attention_window": attention_window._case,
        "attention_csa": attention_csa._case,
        "attention_hca": attention_hca._case,
    }
    case = make[op_name]
    rows = [(33, 6), (0, 0), (14, 3), (0, 1)]
    return (
        varied(
            op_name,
            case("", 6, rows),
            "ragged, NaN padding and holes",
            both(nan_input, holes),
        ),
        varied(op_name, case("", 5, [(29, 5), (90, 2)]), "spare rows", longer_ring("ring", 4)),
        varied(op_name, case("", 3, [(40, 3)]), "a sink above all", _sink(60.0)),
        varied(op_name, case("", 3, [(40, 3)]), "a sink below all", _sink(-60.0)),
        varied(op_name, case("", 2, [(40, 2)]), "logits far apart", scaled("q", 30.0)),
        varied(op_name, case("", 2, [(40, 2)]), "equal logits", zeroed("q")),
        varied(op_name, case("", 1, [(60, 1), (15, 0)]), "no row but one", nan_input),
        case("longer than the ring", 45, [(7, 45)]),
    )


def _sink(value: float) -> Callable[[Gen, Inputs], None]:
    def change(_: Gen, inputs: Inputs) -> None:
        inputs["sink"] = torch.full_like(inputs["sink"], value)

    return change


def _huge_visible(g: Gen, inputs: Inputs) -> None:
    inputs["keys"] = g.state(len(inputs["slots"]) + 1, 701, inputs["keys"].shape[2])


def _tokens_of_one_expert(_: Gen, inputs: Inputs) -> None:
    inputs["indices"][:] = torch.tensor([1, 0, 2])


MORE_CASES: dict[str, tuple[Case, ...]] = {
    "hc_pre": (
        hc_pre._case(1, 2, 32, 0.1, streams=2),
        hc_pre._case(2, 1, 24, 3.0),
        varied("hc_pre", base("hc_pre", 1), "zero streams", zeroed("x")),
        varied("hc_pre", base("hc_pre", 1), "tiny streams", scaled("x", 1e-4)),
        varied("hc_pre", base("hc_pre", 1), "a NaN row", first_row("x", torch.nan)),
    ),
    "hc_post": (
        varied("hc_post", base("hc_post", 1), "a NaN row", first_row("y", torch.nan)),
        varied("hc_post", base("hc_post", 1), "zero gates", zeroed("post", "comb")),
    ),
    "hc_head": (
        hc_head._case(2, 3, 32, 7),
        varied("hc_head", base("hc_head", 1), "rows that are none", _rows_none),
        varied("hc_head", base("hc_head", 1), "zero streams", zeroed("x")),
    ),
    "head": (head._case(1, 1, 8, 8192), head._case(2, 1, 8, 20_001), head._case(1, 3, 8, 1)),
    "rms_norm": (
        rms_norm._case(7, 3),
        varied("rms_norm", base("rms_norm", 1), "zeros", zeroed("x")),
        varied("rms_norm", base("rms_norm", 1), "large", scaled("x", 1e15)),
        varied("rms_norm", base("rms_norm", 1), "a NaN row", first_row("x", torch.nan)),
    ),
    "linear_fp8": (
        varied("linear_fp8", base("linear_fp8", 1), "zeros", zeroed("x")),
        varied("linear_fp8", base("linear_fp8", 1), "a zero row", first_row("x", 0.0)),
        varied("linear_fp8", base("linear_fp8", 1), "a NaN row", first_row("x", torch.nan)),
        varied("linear_fp8", base("linear_fp8", 3), "large", scaled("x", 1e25)),
    ),
    "linear_bf16": (
        varied("linear_bf16", base("linear_bf16", 1), "a NaN row", first_row("x", torch.nan)),
    ),
    "grouped_linear": (
        grouped_linear._case(1, 2, 3, 130, 129),
        varied("grouped_linear", base("grouped_linear", 1), "zeros", zeroed("x")),
    ),
    "query_heads": (
        varied("query_heads", base("query_heads"), "at the last position", _at_last_position),
        varied("query_heads", base("query_heads"), "zeros", zeroed("x")),
        varied("query_heads", base("query_heads"), "eps matters", scaled("x", 1e-3)),
        query_heads._case(3, 4, 7, 64, 64, 0),
    ),
    "index_query": (
        varied("index_query", base("index_query"), "at the last position", _at_last_position),
        varied("index_query", base("index_query"), "zeros", zeroed("x")),
        varied("index_query", base("index_query"), "subnormal", scaled("x", 1e-38)),
        index_query._case(3, 2, 12, 128, 64, 500),
    ),
    "kv_row": (
        varied("kv_row", base("kv_row"), "at the last position", _at_last_position),
        varied("kv_row", base("kv_row"), "zeros", zeroed("x")),
        varied("kv_row", base("kv_row"), "below the floor of amax", scaled("norm", 1e-6)),
        kv_row._case(2, 3, 512, 64, 77),
        kv_row._case(2, 3, 100, 64, 77),
    ),
    "compress_csa": _compress_cases("compress_csa"),
    "compress_hca": _compress_cases("compress_hca"),
    "compress_index": _compress_cases("compress_index"),
    "indexer_topk": (
        varied(
            "indexer_topk",
            indexer_topk._case("", [(100, 7), (3, 0), (11, 4), (0, 5)], 7),
            "NaN padding",
            nan_padding("q", "weights"),
        ),
        varied(
            "indexer_topk",
            indexer_topk._case("", [(80, 40)], 40, 7, ties=True),
            "ties at the border",
            _equal_keys,
        ),
        varied(
            "indexer_topk",
            indexer_topk._case("", [(200, 3)], 3),
            "zero weights: all equal",
            zeroed("weights"),
        ),
        indexer_topk._case("more than is visible", [(150, 3), (20, 2)], 3, 64),
        indexer_topk._case("one of many", [(250, 2)], 2, 1),
        indexer_topk._case("no row has new tokens", [(50, 0), (0, 0)], 2),
        varied(
            "indexer_topk",
            indexer_topk._case("", [(0, 5)], 5, ties=True),
            "a pool much larger than the sequence",
            _huge_visible,
        ),
    ),
    "attention_window": _attention_cases("attention_window"),
    "attention_csa": (
        *_attention_cases("attention_csa"),
        attention_csa._case("one entry a query", 3, [(70, 3), (5, 1)], 1),
    ),
    "attention_hca": (
        *_attention_cases("attention_hca"),
        attention_hca._case("an entry completed by the last token", 4, [(12, 4), (20, 4)]),
        attention_hca._case("ratio 128", 3, [(126, 3), (255, 1), (300, 2)], 128),
    ),
    "route_scores": (
        route_scores._case(2, 3, 256, 6),
        route_scores._case(1, 3, 8, 8),
        varied("route_scores", base("route_scores", 1), "zeros", zeroed("x")),
        varied("route_scores", base("route_scores", 1), "bias decides", scaled("bias", 1e3)),
    ),
    "moe": (
        moe._case("one expert of each token out of range", [3, 3], 3, experts=6, spread=6),
        moe._case("fp8 range with NaN padding", [2, 0, 4], 4, experts=5, begin=4, fmt="fp8"),
        varied("moe", base("moe", 1), "clamps act", scaled("x", 30.0)),
        varied("moe", base("moe", 1), "all tokens to the same experts", _tokens_of_one_expert),
        varied("moe", base("moe", 1), "zero weights", zeroed("weights")),
    ),
    "shared_expert": (
        varied("shared_expert", base("shared_expert", 1), "clamps act", scaled("x", 30.0)),
        varied("shared_expert", base("shared_expert", 1), "a NaN row", first_row("x", torch.nan)),
        shared_expert._case(2, 2, 256, 130),
    ),
}
