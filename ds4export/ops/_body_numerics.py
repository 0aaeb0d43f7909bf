"""Number formats and roundings as ONNX nodes: the twin of `_numerics`, name by name.

Every helper appends nodes to the body of its first argument. Float values are float32 inside a body; the
dtype of an op's boundary (bfloat16 in official numerics) is met by `load` and `store` alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from ds4export.ops._body import BF16, E4M3, FLOAT, INT32, INT64, T
from ds4export.ops._numerics import (
    E2M1_VALUES,
    E8M0_VALUES,
    FP4_BLOCK,
    FP8_BLOCK,
    KV_BLOCK,
    WEIGHT_TILE,
)

BLOCK_ELEMENTS = (
    1 << 20
)  # float32 values of a weight that are decoded at once: 4 MB, a second-level cache


def e4m3_value(code: int) -> float:
    """The value of one e4m3fn byte: no infinity, 0x7F and 0xFF are NaN."""
    sign, exponent, mantissa = -1.0 if code & 128 else 1.0, (code >> 3) & 15, code & 7
    if exponent == 15 and mantissa == 7:
        return math.nan
    if exponent == 0:
        return sign * mantissa * 2.0**-9
    return sign * (8 + mantissa) * 2.0 ** (exponent - 10)


E4M3_VALUES = tuple(e4m3_value(c) for c in range(256))


def load(x: T) -> T:
    return x.cast(FLOAT)


def store(x: T) -> T:
    """Round a float32 value to the boundary dtype."""
    return x.cast(BF16) if x.body.official else x


def rounded(x: T) -> T:
    """An intermediate that the released code holds as a bf16 tensor."""
    return x.cast(BF16).cast(FLOAT) if x.body.official else x


def from_bytes(codes: T, values: tuple[float, ...]) -> T:
    """Decode INT8 bytes by a 256-entry table; a negative byte is a negative index, which ONNX allows.

    GatherElements on the flat index runs at the speed of a Cast, Gather at a third of it.
    """
    b = codes.body
    table = b.const(np.array(values, np.float32))
    flat = b.op("GatherElements", table, codes.cast(INT32).reshape(-1), dtype=FLOAT, axis=0)
    return flat.reshape(codes.size_all())


def scale_values(scale: T) -> T:
    return scale if scale.body.options.float_scales else from_bytes(scale, E8M0_VALUES)


def fp8_rows(weight: T, scales: T, start: T, end: T) -> T:
    """Rows start..end of e4m3 bytes [O, I] times tile scales (float32 [o, i]) -> float32 [end - start, i · 128].

    Columns beyond I are zero: a ragged last tile is padded, and so must be what it is multiplied with.
    """
    b, wide = weight.body, scales.size(1) * WEIGHT_TILE
    values = from_bytes(_padded_to(weight.slice(0, start, end), 1, wide), E4M3_VALUES)
    tile_row = (b.arange(end - start) + start) // WEIGHT_TILE
    s = scales.gather(tile_row).unsqueeze(2)  # [rows, i, 1]
    return (values.reshape(0, -1, WEIGHT_TILE) * s).reshape(-1, wide)


def linear_fp8(x: T, weight: T, scale: T) -> T:
    """x float32 [n, I] · (e4m3 bytes [O, I] · tile scales)ᵀ -> float32 [n, O], decoded block by block."""
    scales = scale_values(scale)
    x = padded_to_tiles(x, scale)

    def block(start: T, end: T) -> T:
        return fp8_rows(weight, scales, start, end)

    return _by_row_blocks(x, weight.size(0), block)


def padded_to_tiles(x: T, scale: T) -> T:
    """x [n, I] with zeros up to whole tiles of a weight with these scales."""
    return _padded_to(x, 1, scale.size(1) * WEIGHT_TILE)


def linear_fp4(x: T, weight: T, scale: T, rows: T) -> T:
    """x float32 [n, C] · (packed e2m1 bytes [rows · C/2] with scales per 32 columns)ᵀ -> float32 [n, rows].

    A byte holds an even and an odd column: the halves are decoded and multiplied apart, never interleaved.
    """
    b = x.body
    packed, scales = weight.reshape(rows, -1), from_bytes(scale, E8M0_VALUES).reshape(rows, -1, 1)
    pairs = x.reshape(-1, x.size(1) // 2, 2)
    halves = b.concat(1, *(pairs.slice(2, i, i + 1).squeeze(2) for i in (0, 1)))  # [n, even ++ odd]
    low, high = (tuple(E2M1_VALUES[(c >> shift) & 15] for c in range(256)) for shift in (0, 4))

    def block(start: T, end: T) -> T:
        codes, s = packed.slice(0, start, end), scales.slice(0, start, end)
        parts = [from_bytes(codes, t).reshape(0, -1, FP4_BLOCK // 2) * s for t in (low, high)]
        return b.concat(1, *(p.reshape(0, -1) for p in parts))

    return _by_row_blocks(halves, rows, block)


def linear_bf16(x: T, weight: T) -> T:
    """x float32 [n, I] · bf16 weight [O, I]ᵀ -> float32 [n, O], widened block by block."""
    return _by_row_blocks(x, weight.size(0), lambda start, end: load(weight.slice(0, start, end)))


def _by_row_blocks(x: T, rows: T, block: Callable[[T, T], T]) -> T:
    """x [n, K] times the rows of a matrix that `block(start, end)` yields as float32 -> [n, rows].

    Blocks hold about BLOCK_ELEMENTS values; the last one is shorter, and its product is padded to be stacked.
    """
    b = x.body
    height = (b.ints(BLOCK_ELEMENTS) // x.size(1)).clip(1, None)
    height = b.op("Min", height, rows, dtype=INT64)
    count = (rows + height - 1) // height

    def step(i: T, _: tuple[T, ...]) -> tuple[tuple[T, ...], tuple[T, ...]]:
        start = i.reshape(1) * height
        end = b.op("Min", start + height, rows, dtype=INT64)
        product = b.op("Gemm", block(start, end), x, dtype=FLOAT, transB=1)
        return (), (_padded_to(product, 0, height),)

    (stacked,) = b.loop(count, (), step)  # [blocks, block rows, n]
    return stacked.reshape(-1, x.size(0)).slice(0, 0, rows).transpose(1, 0)


def in_rows(x: T, product: Callable[[T], T], outputs: T) -> T:
    """Apply a product on [n, I] to x [..., I] -> [..., outputs]."""
    lead = x.body.op("Shape", x, dtype=INT64, start=0, end=-1)
    return product(x.reshape(-1, x.size_last())).reshape(lead, outputs)


def _padded_to(x: T, axis: int, size: T) -> T:
    """Zeros behind x along `axis`, up to `size`."""
    b = x.body
    pads = b.vector(b.ints(0), size - x.size(axis))
    return b.op("Pad", x, pads, b.scalar(0, x.dtype), b.ints(axis), dtype=x.dtype)


def power_of_two_scale(amax: T, largest: float) -> T:
    """2^ceil(log2(amax / largest)), exact: a logarithm guesses the exponent, comparisons correct it."""
    b = amax.body
    table = b.const(np.array(E8M0_VALUES, np.float32))
    ratio = amax / largest
    guess = (ratio.unary("Log") * (1 / math.log(2))).unary("Round").cast(INT64) + 127
    guess = guess.clip(1, 253)
    up, down = ratio > table.gather(guess), ratio <= table.gather(guess - 1)
    return table.gather(guess + up.cast(INT64) - down.cast(INT64))


def _in_blocks(x: T, block: int) -> T:
    """[..., K] -> [..., ceil(K/block), block], zero-padded."""
    b = x.body
    lead, width = b.op("Shape", x, dtype=INT64, start=0, end=-1), x.size_last()
    short = (b.ints(block) - width % block) % block
    pads = b.vector(b.ints(0, 0, 0), short)
    flat = b.op("Pad", x.reshape(-1, width), pads, dtype=FLOAT)
    return flat.reshape(lead, -1, block)


def _from_blocks(blocks: T, like: T) -> T:
    b = blocks.body
    lead = b.op("Shape", like, dtype=INT64, start=0, end=-1)
    return blocks.reshape(lead, -1).slice(-1, 0, like.size_last())


def fp8_round_trip(x: T, block: int) -> T:
    blocks = _in_blocks(x, block)
    scale = power_of_two_scale(blocks.unary("Abs").max(-1).clip(1e-4, None), 448.0)
    codes = (blocks / scale).clip(-448.0, 448.0).cast(E4M3).cast(FLOAT)
    return _from_blocks(codes * scale, x)


def fp4_round_trip(x: T) -> T:
    """x [..., K] with K a multiple of 32."""
    b = x.body
    blocks = x.reshape(-1, FP4_BLOCK)
    scale = power_of_two_scale(blocks.unary("Abs").max(-1).clip(6 * 2.0**-126, None), 6.0)
    v = (blocks / scale).clip(-6.0, 6.0)
    size = v.unary("Abs")
    step = b.where(size < 2.0, b.scalar(0.5, FLOAT), b.where(size < 4.0, b.scalar(1.0, FLOAT), 2.0))
    return ((v / step).unary("Round") * step * scale).reshape(x.size_all())


def quantised_activation(x: T) -> T:
    return fp8_round_trip(load(x), FP8_BLOCK) if x.body.official else x


def rms(x: T, weight: T, eps: float) -> T:
    return x * (1.0 / ((x * x).mean(-1) + eps).unary("Sqrt")) * load(weight)


def rope(x: T, positions: T, freqs: T, *, inverse: bool = False) -> T:
    """x [B, T, H, d] float32, positions INT64 [B, T], freqs [half the roped dims]."""
    b = x.body
    keep = x.size_last() - freqs.size(0) * 2
    nope = x.slice(-1, 0, keep)
    pairs = x.slice(-1, keep, x.size_last()).reshape(0, 0, 0, -1, 2)
    a, c = pairs.slice(-1, 0, 1), pairs.slice(-1, 1, 2)  # [B, T, H, r/2, 1]
    angle = (positions.cast(FLOAT).unsqueeze(2) * freqs).unsqueeze(2, 4)
    cos, sin = angle.unary("Cos"), angle.unary("Sin")
    sin = sin.unary("Neg") if inverse else sin
    turned = b.concat(-1, a * cos - c * sin, a * sin + c * cos).reshape(0, 0, 0, -1)
    return b.concat(-1, nope, turned)


def hadamard_fp4(x: T, size: int) -> T:
    if not x.body.official:
        return x
    signs = np.array(
        [[1 - 2 * ((a & c).bit_count() % 2) for c in range(size)] for a in range(size)]
    )
    h = x.body.const(signs.astype(np.int8)).cast(FLOAT)
    return fp4_round_trip(rounded(x.body.matmul(x, h) * size**-0.5))


def rounded_nope(x: T, freqs: T) -> T:
    if not x.body.official:
        return x
    keep = x.size_last() - freqs.size(0) * 2
    nope, roped = x.slice(-1, 0, keep), x.slice(-1, keep, x.size_last())
    return x.body.concat(-1, fp8_round_trip(nope, KV_BLOCK), roped)


def swiglu(gate: T, up: T, limit: float) -> T:
    gate = gate.clip(None, limit)
    return gate * gate.unary("Sigmoid") * up.clip(-limit, limit)


def query_positions(x: T, positions: T) -> T:
    """Absolute position of every row of x [B, T, ...] -> INT64 [B, T]."""
    return positions.unsqueeze(1) + x.body.arange(x.size(1))
