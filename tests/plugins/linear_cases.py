"""Cases of the linears, the routers and the experts that take every instance of a kernel, and the widths that ship.

Up to 8 tokens, up to 32 and more take three paths; rows that are not whole pieces of 16 bytes a fourth. Of the widths
that ship only a few rows are drawn: what they test is the depth of the sums.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ds4export.ops import grouped_linear, head, linear_bf16, linear_fp8, route_hash, shared_expert
from ds4export.ops._cases import Gen
from ds4export.ops._define import Case

FLASH, PRO = 4096, 7168


def _uneven(x: torch.Tensor, g: Gen) -> torch.Tensor:
    """Blocks of 128 of x times powers of two of their own; the last token but one NaN in one place, the last zero."""
    blocks = -(-x.shape[-1] // 128)
    powers = 2.0 ** g.integers((*x.shape[:-1], blocks), -12, 13)
    x = x * powers.repeat_interleave(128, -1)[..., : x.shape[-1]].to(x.dtype)
    x[..., -2, x.shape[-1] // 2] = torch.nan
    x[..., -1, :] = 0
    return x


def _uneven_linear(name: str, tokens: int, inputs: int, outputs: int) -> Case:
    """Scales far apart, from row to row of tiles and from block to block of x, and one that is NaN."""

    def make(g: Gen) -> tuple[object, ...]:
        weight, scale = g.fp8(outputs, inputs)
        scale += g.integers(tuple(scale.shape), -30, 31).to(scale.dtype)
        scale[-1, 0] = -1  # 255
        return _uneven(g.x(1, tokens, inputs), g), weight, scale

    return Case(name, make)


def _experts(
    name: str,
    rows: list[int],
    tokens: int,
    widths: tuple[int, int],
    k: int,
    experts: int,
    *,
    begin: int = 0,
    beyond: int = 0,
    fmt: str = "fp4",
    twice: bool = False,
    uneven: bool = False,
) -> Case:
    """`beyond`: experts after the range; `twice`: a token's second expert is its first again; `uneven`: _uneven(x).

    Padding holds NaN, and indices of which one is no expert and the others are.
    """
    hidden, inner = widths

    def make(g: Gen) -> tuple[object, ...]:
        weight, scale = (g.fp4_run if fmt == "fp4" else g.fp8_run)(experts, inner, hidden)
        order = sorted(range(experts), key=str)
        expert_rows = torch.tensor([order.index(e) for e in range(experts)])
        total, batch = begin + experts + beyond, len(rows)
        lists = [torch.from_numpy(g.rng.permutation(total)[:k]) for _ in range(batch * tokens)]
        indices = torch.stack(lists).reshape(batch, tokens, k)
        if twice:
            indices[..., 1] = indices[..., 0]
        x, weights = g.x(batch, tokens, hidden) * 4, g.f32(batch, tokens, k).abs()
        x = _uneven(x, g) if uneven else x
        for b, n in enumerate(rows):
            x[b, n:], weights[b, n:], indices[b, n:, 0] = torch.nan, torch.nan, 10**12
        return x, weights, indices, weight, scale, expert_rows, torch.tensor(rows), 10.0, begin, fmt

    return Case(name, make)


def _route(name: str, tokens: int, width: int, experts: int, k: int, *, ties: bool = False) -> Case:
    def make(g: Gen) -> tuple[object, ...]:
        gate, bias = g.bf16(experts, width) * (2 / width**0.5), g.f32(experts) * 0.1
        if ties:
            gate[1::2], bias[1::2] = gate[::2], bias[::2]
        return g.x(1, tokens, width), gate, bias, k, 1.5

    return Case(name, make)


LINEAR_CASES: dict[str, Sequence[Case]] = {
    "linear_fp8": (
        linear_fp8._case("eight tokens", (8, 1, 1024), 40),
        linear_fp8._case("eight tokens, too wide for shared memory", (1, 8, FLASH), 16),
        linear_fp8._case("nine tokens", (9, 1, 320), 130),
        linear_fp8._case("tiles", (1, 130, 448), 260),
        linear_fp8._case("many tokens, odd", (12, 1, 333), 37),
        _uneven_linear("streamed, uneven scales", 5, 400, 150),
        _uneven_linear("tiles, uneven scales", 45, 400, 300),
        linear_fp8._case("one column", (7, 1, 1), 3),
        linear_fp8._case("no token", (0, 1, 128), 128),
        linear_fp8._case("flash wq_a", (1, 1, FLASH), 64),
        linear_fp8._case("pro wq_a", (1, 1, PRO), 64),
    ),
    "linear_bf16": (
        linear_bf16._case((1, 8, 264), 33),
        linear_bf16._case((2, 16, 640), 24),
        linear_bf16._case((3, 50, 328), 260),
        linear_bf16._case((1, 37, 33), 130),
        linear_bf16._case((1, 0, 32), 8),
        linear_bf16._case((1, 1, FLASH), 64),
    ),
    "head": (
        head._case(2, 20, 136, 150),
        head._case(1, 9, 64, 100),
        head._case(1, 3, 33, 40),
        head._case(1, 1, PRO, 64),
    ),
    "grouped_linear": (
        grouped_linear._case(1, 9, 2, 48, 144),
        grouped_linear._case(1, 40, 4, 33, 80),
        grouped_linear._case(1, 140, 2, 130, 272),
        grouped_linear._case(2, 1, 3, 17, 33),
        grouped_linear._case(1, 1, 2, 32, FLASH),
    ),
    "shared_expert": (
        shared_expert._case(1, 1, 416, 272),
        shared_expert._case(1, 20, 160, 96),
        shared_expert._case(2, 40, 160, 208),
        shared_expert._case(1, 8, FLASH, 16),
        shared_expert._case(1, 8, 16, FLASH),
        shared_expert._case(1, 70, 37, 130),
    ),
    "route_scores": (
        _route("flash", 2, FLASH, 256, 6),
        _route("pro", 1, PRO, 384, 6),
        _route("pairs of equals", 8, 64, 32, 8, ties=True),
        _route("all experts", 5, 33, 7, 7),
        _route("tiles, pairs of equals", 40, 72, 64, 6, ties=True),
        _route("no token", 0, 64, 8, 2),
    ),
    "route_hash": (
        route_hash._case(2, 20, 256, 6),
        route_hash._case(1, 0, 8, 2),
        Case(
            "odd width",
            lambda g: (g.x(1, 3, 33), g.bf16(8, 33), g.ids(1, 3, 9), g.integers((9, 2), 0, 8), 1.5),
        ),
    ),
    "moe": (
        _experts("one token", [1], 1, (128, 32), 2, 4),
        _experts("three of sixteen", [1, 1, 1], 1, (256, 64), 6, 16),
        _experts("an expert twice", [2], 2, (64, 64), 3, 5, twice=True),
        _experts("padding of NaN", [3, 0, 1], 4, (96, 160), 4, 9),
        _experts("tiles", [40, 3], 40, (160, 96), 3, 6, beyond=2),
        _experts("full tiles", [150], 150, (288, 160), 2, 2),
        _experts("fp8 tiles", [40, 20], 40, (144, 112), 3, 4, begin=2, beyond=1, fmt="fp8"),
        _experts("tiles, uneven", [37], 37, (416, 96), 2, 5, uneven=True),
        _experts("fp8 tiles, uneven", [37], 37, (400, 144), 2, 5, fmt="fp8", uneven=True),
        _experts("fp8 wide", [2], 2, (272, 144), 2, 3, fmt="fp8"),
        _experts("nobody in the range", [2], 2, (64, 64), 2, 3, begin=50),
        _experts("pro tokens", [1], 1, (PRO, 32), 2, 2),
        _experts("pro inside", [1], 1, (32, 3072), 2, 2),
    ),
}
