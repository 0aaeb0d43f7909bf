"""Number formats and roundings as ONNX nodes: the twin of `_numerics`, name by name.

Every helper appends nodes to the body of its first argument. Float values are float32 inside a body; the
dtype of an op's boundary (bfloat16 in official numerics) is met by `load` and `store` alone.
"""

from __future__ import annotations

import math

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


def dequantise_fp8(weight: T, scale: T) -> T:
    """weight INT8 [O, I], scale [o, i] of 128×128 tiles -> float32 [O, I]."""
    wide = scale_values(scale).unsqueeze(1, 3).expand(1, WEIGHT_TILE, 1, WEIGHT_TILE)
    tile = weight.body.ints(WEIGHT_TILE)
    full = wide.reshape(scale.size(0) * tile, scale.size(1) * tile)
    b = weight.body
    zero, axes = b.ints(0, 0), b.ints(0, 1)
    full = b.op("Slice", full, zero, weight.size_all(), axes, dtype=FLOAT)
    return from_bytes(weight, E4M3_VALUES) * full


def dequantise_fp4(weight: T, scale: T, columns: T) -> T:
    """weight INT8 bytes (any shape), scale bytes likewise, row-major -> float32 [rows, columns]."""
    b = weight.body
    pairs = np.array([[E2M1_VALUES[c & 15], E2M1_VALUES[c >> 4]] for c in range(256)], np.float32)
    values = b.const(pairs).gather(weight.cast(INT32).reshape(-1))  # [bytes, 2]
    blocks = values.reshape(-1, FP4_BLOCK) * from_bytes(scale, E8M0_VALUES).reshape(-1, 1)
    return blocks.reshape(-1, columns)


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
