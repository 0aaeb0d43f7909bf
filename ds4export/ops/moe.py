"""moe: the routed experts of one layer, or a range of them.

    y_e = w2_e·(silu(min(w1_e·x, limit))·clamp(w3_e·x, ±limit)·w)        w: the token's routing weight of e
    out = Σ y_e over the token's experts, float32, by rising expert number

Axes: x [B, T, D], weights float32 and indices INT64 [B, T, k], experts_weight INT8 [E', 3, bytes] (w1, w2, w3 of each
expert as stored: one run of the checkpoint), experts_scale [E', 3, scale bytes], expert_rows INT64 [E'] (row of expert
expert_begin + i in the run: files sort names, so 10 stands before 2), num_new INT64 [B] -> float32 partial sum
[B, T, D], zero for padding tokens and tokens without an expert in the range. `weight_format` is "fp4" (e2m1, a scale
per 32 columns) or "fp8" (e4m3, 128×128 tiles, the -Base files). Official numerics: x by A8(128); w1·x and w3·x to bf16;
the weighted activation to bf16, then A8(128); w2's result to bf16. Specification sections 9 and 11 row 14.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ds4export.ops import _body_numerics as body_numerics
from ds4export.ops._body import FLOAT, INT64, T
from ds4export.ops._cases import Gen
from ds4export.ops._define import BOUNDARY, BYTES, F32, INTS, Case, OpDef, Tolerance, new
from ds4export.ops._numerics import (
    dequantise_fp4,
    dequantise_fp8,
    quantised_activation,
    rounded,
    stored,
    swiglu,
)


def expert_matrix(
    weight: Tensor, scale: Tensor, rows: int, columns: int, weight_format: str
) -> Tensor:
    """One stored matrix as float32 [rows, columns]."""
    if weight_format == "fp4":
        return dequantise_fp4(weight.reshape(rows, -1), scale.reshape(rows, -1))
    return dequantise_fp8(weight.reshape(rows, columns), scale.reshape(-(-rows // 128), -1))


def inner_width(num_bytes: int, hidden: int, weight_format: str) -> int:
    return num_bytes * (2 if weight_format == "fp4" else 1) // hidden


def reference(
    x: Tensor,
    weights: Tensor,
    indices: Tensor,
    experts_weight: Tensor,
    experts_scale: Tensor,
    expert_rows: Tensor,
    num_new: Tensor,
    limit: float,
    expert_begin: int,
    weight_format: str,
) -> Tensor:
    d = x.shape[2]
    inner = inner_width(experts_weight.shape[2], d, weight_format)
    shapes = ((inner, d), (d, inner), (inner, d))
    live = torch.arange(x.shape[1]) < num_new[:, None]
    out = torch.zeros(x.shape, dtype=torch.float32)
    for i, row in enumerate(expert_rows.tolist()):
        b, t, place = ((indices == expert_begin + i) & live.unsqueeze(-1)).nonzero(as_tuple=True)
        if len(b) == 0:
            continue
        w1, w2, w3 = (
            expert_matrix(experts_weight[row, m], experts_scale[row, m], *shapes[m], weight_format)
            for m in range(3)
        )
        xe = quantised_activation(x[b, t])
        gate, up = rounded(xe @ w1.T, x), rounded(xe @ w3.T, x)
        h = stored(swiglu(gate, up, limit) * weights[b, t, place, None], x)
        out.index_put_((b, t), rounded(quantised_activation(h) @ w2.T, x), accumulate=True)
    return out


def fake(x: Tensor, *_: object) -> Tensor:
    return new(x, *x.shape, dtype=torch.float32)


def body(
    x: T,
    weights: T,
    indices: T,
    experts_weight: T,
    experts_scale: T,
    expert_rows: T,
    num_new: T,
    *,
    limit: float,
    expert_begin: int,
    weight_format: str,
) -> T:
    b = x.body
    d, k = x.size(2), indices.size(2)
    live = (b.arange(x.size(1)) < num_new.unsqueeze(1)).unsqueeze(2)
    chosen = b.where(live, indices - expert_begin, -1).reshape(-1, k)  # [n, k]
    flat = x.reshape(-1, d)
    xq = body_numerics.quantised_activation(flat)
    w = weights.reshape(-1, k)
    count = expert_rows.size(0)
    hit = chosen.unsqueeze(0).equals(b.arange(count).unsqueeze(1).unsqueeze(2)).cast(INT64)
    used = b.op("NonZero", hit.max(2, keepdims=False).max(1, keepdims=False), dtype=INT64).squeeze(
        0
    )
    per_byte = 2 if weight_format == "fp4" else 1
    inner = experts_weight.size(2) * per_byte // d

    def times(xs: T, row: T, m: int, rows: T, columns: T) -> T:
        """xs [h, columns] times matrix m of the expert in that row of the run."""
        weight, scale = (
            run.gather(row).gather(b.scalar(m, INT64)) for run in (experts_weight, experts_scale)
        )
        if weight_format == "fp4":
            return body_numerics.linear_fp4(xs, weight, scale, rows)
        tiles = scale.reshape((rows + 127) // b.ints(128), -1)
        return body_numerics.linear_fp8(xs, weight.reshape(rows, columns), tiles)

    def one_expert(i: T, carried: tuple[T, ...]) -> tuple[tuple[T, ...], tuple[T, ...]]:
        (out,) = carried
        e = used.gather(i.reshape(1))
        row = expert_rows.gather(e).squeeze(0)
        place = b.op("NonZero", chosen.equals(e), dtype=INT64).transpose(
            1, 0
        )  # [h, (token, place)]
        token = place.slice(1, 0, 1)
        xe = xq.gather(token.squeeze(1))
        we = b.op("GatherND", w, place, dtype=FLOAT).unsqueeze(1)
        gate = body_numerics.rounded(times(xe, row, 0, inner, d))
        up = body_numerics.rounded(times(xe, row, 2, inner, d))
        h = body_numerics.store(body_numerics.swiglu(gate, up, limit) * we)
        y = body_numerics.rounded(times(body_numerics.quantised_activation(h), row, 1, d, inner))
        return (b.op("ScatterND", out, token, y, dtype=FLOAT, reduction="add"),), ()

    zeros = b.op("ConstantOfShape", flat.size_all(), dtype=FLOAT)
    (out,) = b.loop(used.size(0), (zeros,), one_expert)
    return out.reshape(x.size_all())


def _case(
    name: str,
    rows: list[int],
    tokens: int,
    *,
    experts: int = 12,
    begin: int = 0,
    fmt: str = "fp4",
    spread: int = 0,
) -> Case:
    def make(g: Gen) -> tuple[object, ...]:
        batch, hidden, inner, k = len(rows), 160, 96, 3
        run = g.fp4_run if fmt == "fp4" else g.fp8_run
        weight, scale = run(experts, inner, hidden)
        order = sorted(range(experts), key=str)
        expert_rows = torch.tensor([order.index(e) for e in range(experts)])
        total = experts + begin + spread
        indices = torch.stack(
            [torch.from_numpy(g.rng.permutation(total)[:k]) for _ in range(batch * tokens)]
        ).reshape(batch, tokens, k)
        x = g.x(batch, tokens, hidden) * 4
        for b, n in enumerate(rows):
            x[b, n:] = torch.nan  # padding
        weights = g.f32(batch, tokens, k).abs()
        return x, weights, indices, weight, scale, expert_rows, torch.tensor(rows), 10.0, begin, fmt

    return Case(name, make)


OP = OpDef(
    name="moe",
    schema="(Tensor x, Tensor weights, Tensor indices, Tensor experts_weight, Tensor experts_scale, "
    "Tensor expert_rows, Tensor num_new, float limit, int expert_begin, str weight_format) -> Tensor",
    inputs={
        "x": BOUNDARY,
        "weights": F32,
        "indices": INTS,
        "experts_weight": BYTES,
        "experts_scale": BYTES,
        "expert_rows": INTS,
        "num_new": INTS,
    },
    outputs={"partial": F32},
    reference=reference,
    fake=fake,
    body=body,
    tolerance=Tolerance(
        3e-6,
        3e-3,
        3e-2,
        "float32 sums in another order; a flipped bf16 rounding may move an activation's e4m3 code",
    ),
    cases=(
        _case("decode", [1], 1),
        _case("ragged with NaN padding", [5, 0, 3], 5),
        _case("a range of experts", [4, 4], 4, experts=5, begin=3, spread=4),
        _case("no token in the range", [0], 2),
        _case("fp8 experts", [3, 2], 3, experts=4, fmt="fp8"),
    ),
)
