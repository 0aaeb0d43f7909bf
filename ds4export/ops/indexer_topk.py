"""indexer_topk: which compressed entries each CSA query reads.

    w[t, h]     = weights[t, h] · (d·H)^-0.5
    score[t, j] = Σ_h w[t, h]·relu(q[t, h]·keys[j])        over visible j: (j+1)·ratio <= position(t) + 1
    chosen(t)   = the k highest of the visible j; equal scores: lower j first

Axes: q [B, T, H, d] (roped, official: FP4-rounded), weights [B, T, H], keys [S, C + 1, d] (already holding this
chunk's entries), slots, positions, num_new INT64 [B] -> chosen INT64 [B, T, k] by falling score, -1 where fewer are
visible. Official numerics rounds q·k, its product with w and the sum over heads to bf16, so equal scores are frequent.
Never holds more than a block of queries times the visible keys. Specification sections 6 and 11 row 10.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ds4export.ops._body import FLOAT, INT64, T
from ds4export.ops._body_numerics import load, query_positions
from ds4export.ops._body_numerics import rounded as body_rounded
from ds4export.ops._cases import Gen
from ds4export.ops._define import BOUNDARY, INTS, CacheRows, Case, OpDef, Tolerance
from ds4export.ops._numerics import rounded
from ds4export.ops._queries import in_query_blocks
from ds4export.ops._ring import gather_pool
from ds4export.state import KEY

BLOCK_ELEMENTS = 1 << 23  # float32 scores that one block of queries may take: 32 MB


def scores(q_THd: Tensor, weights_TH: Tensor, keys_jd: Tensor) -> Tensor:
    """float32 [T, j], rounded as the released code rounds where the inputs are bf16."""
    w = rounded(weights_TH.float() * (q_THd.shape[1] * q_THd.shape[2]) ** -0.5, q_THd)
    dots = rounded(torch.einsum("thd,jd->thj", q_THd.float(), keys_jd.float()), q_THd).relu()
    return rounded(rounded(dots * w.unsqueeze(-1), q_THd).sum(1), q_THd)


def reference(
    q: Tensor,
    weights: Tensor,
    keys: Tensor,
    slots: Tensor,
    positions: Tensor,
    num_new: Tensor,
    k: int,
    ratio: int,
) -> Tensor:
    chosen = torch.full((*q.shape[:2], k), -1)
    for b, (slot, p, n) in enumerate(
        zip(slots.tolist(), positions.tolist(), num_new.tolist(), strict=True)
    ):
        j = torch.arange((p + n) // ratio)
        score = scores(q[b, :n], weights[b, :n], keys[slot, : len(j)])
        visible = (j + 1) * ratio <= torch.arange(p, p + n)[:, None] + 1
        score = torch.where(visible, score, -torch.inf)
        order = torch.sort(score, dim=-1, descending=True, stable=True).indices[
            :, :k
        ]  # stable: lower j first
        chosen[b, :n, : order.shape[1]] = torch.where(visible.gather(1, order), order, -1)
    return chosen


def fake(q: Tensor, *args: Tensor | int) -> Tensor:
    return q.new_empty((*q.shape[:2], args[5]), dtype=torch.int64)  # type: ignore[arg-type]


def body(q: T, weights: T, keys: T, slots: T, positions: T, num_new: T, *, k: int, ratio: int) -> T:
    b = q.body
    total = positions + num_new
    visible_most = b.op("ReduceMax", total // ratio, dtype=INT64, keepdims=0).reshape(1)
    j = b.arange(visible_most)
    rows = j.unsqueeze(0).expand(slots.size(0), visible_most)
    keys_t = load(gather_pool(keys, slots, rows)).transpose(0, 2, 1).unsqueeze(1)  # [B, 1, d, j]
    heads = q.size(2, 2)
    root = (heads.slice(0, 0, 1) * heads.slice(0, 1, 2)).cast(FLOAT).unary("Sqrt")
    w = body_rounded(load(weights) / root)
    width = slots.size(0) * heads.slice(0, 0, 1) * visible_most.clip(1, None)
    block = b.ints(BLOCK_ELEMENTS) // width

    def one_block(at: T, qs: T, ws: T) -> T:
        dots = body_rounded(b.matmul(qs, keys_t)).unary("Relu")  # [B, t, H, j]
        score = body_rounded(body_rounded(dots * ws.unsqueeze(3)).sum(2, keepdims=False))
        visible = (j + 1) * ratio <= at.unsqueeze(2) + 1
        alive = j < (total // ratio).unsqueeze(1).unsqueeze(2)
        score = b.where(visible & alive, score, float("-inf"))
        pads = b.ints(0, 0, 0, 0, 0, k)
        score = b.op("Pad", score, pads, b.scalar(float("-inf"), FLOAT), dtype=FLOAT)
        best, index = b.ops("TopK", score, b.ints(k), dtypes=(FLOAT, INT64))
        real = (at < total.unsqueeze(1)).unsqueeze(2)  # padding queries choose nothing
        return b.where((best > float("-inf")) & real, index, -1)

    return in_query_blocks(query_positions(q, positions), (load(q), w), block, one_block)


def _case(
    name: str, rows: list[tuple[int, int]], tokens: int, k: int = 8, *, ties: bool = False
) -> Case:
    def make(g: Gen) -> tuple[object, ...]:
        batch, heads, d = len(rows), 5, 32
        q, keys = g.x(batch, tokens, heads, d), g.state(batch + 1, 70, d)
        if ties:
            keys[:] = keys[:, :1]
        else:
            keys[:, -1] = torch.nan  # the scratch row
            for slot in range(batch):
                p, n = rows[batch - 1 - slot]
                keys[slot, (p + n) // 4 :] = torch.nan  # entries that do not exist yet
        positions, num_new = (torch.tensor(v) for v in zip(*rows, strict=True))
        slots = torch.arange(batch).flip(0)
        return q, g.x(batch, tokens, heads), keys, slots, positions, num_new, k, 4

    return Case(name, make)


OP = OpDef(
    name="indexer_topk",
    schema="(Tensor q, Tensor weights, Tensor keys, Tensor slots, Tensor positions, Tensor num_new, int k, "
    "int ratio) -> Tensor",
    inputs={
        "q": BOUNDARY,
        "weights": BOUNDARY,
        "keys": BOUNDARY,
        "slots": INTS,
        "positions": INTS,
        "num_new": INTS,
    },
    outputs={"chosen": INTS},
    cache={"keys": CacheRows(KEY, "q")},
    reference=reference,
    fake=fake,
    body=body,
    tolerance=Tolerance(
        0.0,
        0.0,
        0.0,
        "sets are equal; a choice may differ only where scores are equal or one bf16 ulp apart",
    ),
    cases=(
        _case("nothing visible", [(0, 3)], 3),
        _case("fewer than k", [(9, 2), (0, 5)], 5),
        _case("decode, more than k", [(200, 1), (63, 1)], 1),
        _case("prefill", [(0, 150)], 150),
        _case("ragged", [(100, 7), (3, 0), (11, 4)], 7),
        _case("all equal: lowest first", [(120, 3)], 3, ties=True),
    ),
)
