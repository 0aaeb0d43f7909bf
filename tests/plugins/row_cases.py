"""Cases of the ops that finish rows and heads, in the widths that run, beside the cases of the ops.

Flash has 64 query heads of 512 and rows of 512, Pro 128; both have 64 index heads of 128, and 64 roped dims everywhere.
Values at the ties and scale borders of e4m3 and e2m1 are built so that everything before the rounding is exact.
The small values of a block are below the bound of a row: what e4m3 does to them shows only in `EQUAL_OUTPUTS`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ds4export.ops._cases import Gen
from ds4export.ops._define import Case

ROPE_DIMS, MILLION = 64, 1_048_576
Fill = Callable[[Tensor], Tensor]  # changes random values [B, T, ...] in place and returns them


def _as_drawn(x: Tensor) -> Tensor:
    return x


def _zeros(x: Tensor) -> Tensor:
    """The first token is zero, and the first 64 columns of all."""
    x[:, 0] = 0
    x[..., :64] = 0
    return x


def _magnitudes(x: Tensor) -> Tensor:
    """Tokens from squares that vanish to squares whose sum overflows."""
    return x * torch.logspace(-30, 19, x.shape[1])[:, None].to(x.dtype)


def _row(
    name: str,
    starts: list[int],
    tokens: int,
    width: int,
    rope_dims: int = ROPE_DIMS,
    fill: Fill = _as_drawn,
) -> Case:
    def make(g: Gen) -> tuple[object, ...]:
        x = fill(g.x(len(starts), tokens, width))
        return x, g.bf16(width), torch.tensor(starts).long(), g.freqs(rope_dims), 1e-6

    return Case(name, make)


def _row_of_ones(name: str, norm: Sequence[float], rope_dims: int) -> Case:
    """A row of 1 and -1 has the root mean square 1: with no eps the kernel quantises ±norm, to the bit."""

    def make(g: Gen) -> tuple[object, ...]:
        signs = 1.0 - 2.0 * g.integers((1, 3, len(norm)), 0, 2)
        weight = torch.tensor(norm).to(torch.bfloat16)
        return signs.to(torch.bfloat16), weight, torch.tensor([0]), g.freqs(rope_dims), 0.0

    return Case(name, make)


def _e4m3_ties() -> list[float]:
    """Half-way points of e4m3 under a scale of 1: normal numbers of all 15 exponents, and subnormal ones."""
    normal = [(1 + odd / 16) * 2.0**e for e in range(-6, 9) for odd in range(1, 16, 2)]
    ties = [v for v in normal if v < 448] + [odd * 2.0**-10 for odd in range(1, 16, 2)]
    rows = [[448.0, *ties[i : i + 63]] for i in range(0, len(ties), 63)]
    rows[-1] += [0.0] * (64 - len(rows[-1]))
    return [v for row in (*rows, [1.0] * 16) for v in row]  # 16 roped dims


_AT_BORDERS = (448.0, 450.0, 446.0, 7.0, 7.03125, 1e38)  # 448·2^n, and next to it
_AT_THE_FLOOR = (1e-4, 1.01e-4, 1e-5, 1e-30, 2.0**-133)


def _blocks_of(tops: Sequence[float]) -> list[float]:
    """A block of 64 for each largest value, then 16 roped dims."""
    return [v * top for top in tops for v in (1.0, *(k / 64 for k in range(63)))] + [1.0] * 16


def _heads(
    name: str,
    starts: list[int],
    tokens: int,
    heads: int,
    width: int,
    rope_dims: int = ROPE_DIMS,
    fill: Fill = _as_drawn,
) -> Case:
    def make(g: Gen) -> tuple[object, ...]:
        x = fill(g.x(len(starts), tokens, heads * width))
        return x, torch.tensor(starts).long(), g.freqs(rope_dims), heads, 1e-6

    return Case(name, make)


def _index(
    name: str,
    starts: list[int],
    tokens: int,
    heads: int,
    width: int = 128,
    rope_dims: int = ROPE_DIMS,
    fill: Fill = _as_drawn,
) -> Case:
    def make(g: Gen) -> tuple[object, ...]:
        x = fill(g.x(len(starts), tokens, heads * width))
        return x, torch.tensor(starts).long(), g.freqs(rope_dims), heads, width

    return Case(name, make)


def _index_of_pairs(name: str, pairs: Sequence[tuple[float, float]]) -> Case:
    """Heads of 64 whose transform is only `top` and `other`, ±, to the bit: two values 4·(top ± other), the rest 0."""

    def make(g: Gen) -> tuple[object, ...]:
        x = torch.zeros(1, 1, len(pairs), 64)
        for head, (top, other) in enumerate(pairs):
            first, second = torch.from_numpy(g.rng.permutation(48)[:2]).tolist()  # not roped
            x[0, 0, head, first], x[0, 0, head, second] = 4 * (top + other), 4 * (top - other)
        exact = x.to(torch.bfloat16)
        assert torch.equal(exact.float(), x), "the values of the case are not bf16"
        return exact.flatten(2), torch.tensor([5]), g.freqs(16), len(pairs), 64

    return Case(name, make)


_E2M1_TIES = (0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0)
_BORDERS = (
    (6.0, 6.0),
    (6.0, 0.5),
    (6.03125, 1.0),
    (5.96875, 2.0),
    (3.0, 3.0),
    (3.015625, 2.984375),
)
_SMALLEST = 2.0**-126  # the scale at the floor

# Outputs that have the reference's values in every case on the host, whatever the op's bound: they must be equal. A
# kernel or a case that meets a rounding that falls apart takes its output from here, and the log says why.
EQUAL_OUTPUTS = {
    "compress_csa": "cache_out",
    "compress_index": "cache_out",
    "hc_post": "out",
    "index_query": "q",
    "kv_row": "kv",
    "query_heads": "q",
    "rms_norm": "y",
}

ROW_CASES: dict[str, Sequence[Case]] = {
    "kv_row": (
        _row("decode", [1000], 1, 512),
        _row("ragged prefill", [0, 77, 4090], 7, 512),
        _row("up to a million", [MILLION - 6, 0], 6, 512),
        _row("rows of 192", [9, 500], 3, 192),
        _row("roped dims cut a block", [12], 5, 88, 24),
        _row("roped dims cut a lane's columns", [12], 5, 80, 12),
        _row("rows not of 16 bytes", [3], 6, 100, 16),
        _row("rows shorter than a lane holds", [3], 5, 6, 2),
        _row("more rows than a block has", [1, 2, 3], 11, 64, 16),
        _row("zeros", [40], 3, 512, fill=_zeros),
        _row("magnitudes", [40], 8, 512, fill=_magnitudes),
        _row_of_ones("ties of e4m3", _e4m3_ties(), 16),
        _row_of_ones("borders of scales", _blocks_of(_AT_BORDERS), 16),
        _row_of_ones("the floor of scales", _blocks_of(_AT_THE_FLOOR), 16),
        _row("no token", [7], 0, 512),
        _row("no batch row", [], 1, 512),
    ),
    "query_heads": (
        _heads("flash decode", [1000], 1, 64, 512),
        _heads("pro decode", [3, 70000], 1, 128, 512),
        _heads("ragged prefill", [0, 77], 3, 12, 512),
        _heads("up to a million", [MILLION - 2], 2, 4, 512),
        _heads("heads of 192", [9, 500], 2, 12, 192),
        _heads("heads that fill no warp", [5], 2, 33, 128),
        _heads("heads not of 16 bytes", [3], 3, 9, 36, 8),
        _heads("all dims roped", [3], 2, 3, 40, 40),
        _heads("zeros", [40], 3, 2, 512, fill=_zeros),
        _heads("magnitudes", [40], 8, 2, 512, fill=_magnitudes),
        _heads("no token", [7], 0, 64, 512),
        _heads("no batch row", [], 1, 64, 512),
    ),
    "index_query": (
        _index("decode", [1000], 1, 64),
        _index("ragged prefill", [0, 77], 3, 64),
        _index("up to a million", [MILLION - 2], 2, 8),
        _index("heads of half a warp", [5], 2, 19),
        _index("heads of 64", [5], 2, 7, 64, 32),
        _index("heads of 32", [5], 2, 9, 32, 32),
        _index("zeros", [40], 3, 3, fill=_zeros),
        _index_of_pairs("ties of e2m1", [(6.0, s * t) for t in _E2M1_TIES for s in (1, -1)]),
        _index_of_pairs("borders of scales", _BORDERS),
        _index_of_pairs("the smallest", [(a * _SMALLEST, b * _SMALLEST) for a, b in _BORDERS[:3]]),
        _index_of_pairs("below the floor", [(t * _SMALLEST, 0.25 * _SMALLEST) for t in _E2M1_TIES]),
        _index_of_pairs("the largest", [(a * 2.0**120, b * 2.0**120) for a, b in _BORDERS]),
        _index("no token", [7], 0, 64),
        _index("no batch row", [], 1, 64),
    ),
}
