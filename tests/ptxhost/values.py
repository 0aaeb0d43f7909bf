"""Values of every PTX type as Python numbers, and one rounding of an exact value to any float format.

Integers and fractions only; nothing is shared with plugins/host.
"""

from __future__ import annotations

import math
import struct
from fractions import Fraction

import ml_dtypes
import numpy as np

Bits = int | None
WIDTH = {"pred": 1, "bf16x2": 32, "f16x2": 32, "bf16": 16, "f16": 16}
# exponent bits, mantissa bits, has infinity
FLOATS = {"f32": (8, 23), "f64": (11, 52), "bf16": (8, 7), "f16": (5, 10)}
NAN: None = None


def width(kind: str) -> int:
    return WIDTH.get(kind) or int("".join(c for c in kind if c.isdigit()))


def signed(bits: int, kind: str) -> int:
    w = width(kind)
    return bits - (1 << w) if kind[0] == "s" and bits >> (w - 1) else bits


def wrap(value: int, kind: str) -> int:
    return value % (1 << width(kind))


def number(bits: int, kind: str) -> float:
    """A float of any format as a Python float: exact, all are at most 64 bits wide."""
    if kind == "f64":
        return float(struct.unpack("<d", struct.pack("<Q", bits))[0])
    if kind == "f32":
        return float(struct.unpack("<f", struct.pack("<I", bits))[0])
    types = {"bf16": ml_dtypes.bfloat16, "f16": np.float16}
    return float(np.uint16(bits).view(types[kind]))


def encoded(value: Fraction | float, kind: str, mode: str = "rn", zero: int = 0) -> Bits:
    """The bits of a value rounded once; `zero` is the sign of an exact zero."""
    exponent_bits, mantissa = FLOATS[kind]
    w, bias = width(kind), (1 << (exponent_bits - 1)) - 1
    infinity = ((1 << exponent_bits) - 1) << mantissa
    if isinstance(value, float):
        if math.isnan(value):
            return NAN
        sign = int(math.copysign(1, value) < 0)
        if math.isinf(value):
            return sign << (w - 1) | infinity
        zero, value = sign, Fraction(value)
    sign = int(value < 0) if value else zero
    size = abs(value)
    if not size:
        return sign << (w - 1)
    power = max(size.numerator.bit_length() - size.denominator.bit_length() - 1, 1 - bias)
    while Fraction(2) ** (power + 1) <= size:
        power += 1
    step = Fraction(2) ** (power - mantissa)
    units = _rounded(size / step, mode, sign)
    largest = (Fraction(2) - Fraction(2) ** -mantissa) * Fraction(2) ** bias
    if units * step > largest:
        stays = mode == "rz" or (mode == "rm" and not sign) or (mode == "rp" and sign)
        return sign << (w - 1) | (infinity - 1 if stays else infinity)
    # Counting in units from the smallest number walks through subnormals and binades alike.
    return sign << (w - 1) | (units + (max(power + bias - 1, 0) << mantissa))


def _rounded(units: Fraction, mode: str, sign: int) -> int:
    if mode == "rn":
        return round(units)  # halves to even
    up = (mode == "rp" and not sign) or (mode == "rm" and sign)
    return math.ceil(units) if up else math.floor(units)


def exact(a: float, b: float, operation: str) -> Fraction | float:
    """+ and × without rounding; infinities, NaN and signed zeros as IEEE 754 has them."""
    if math.isfinite(a) and math.isfinite(b):
        made = Fraction(a) + Fraction(b) if operation == "+" else Fraction(a) * Fraction(b)
        return made or (a + b if operation == "+" else a * b)
    return a + b if operation == "+" else a * b


def fused(a: float, b: float, c: float) -> Fraction | float:
    if all(map(math.isfinite, (a, b, c))):
        made = Fraction(a) * Fraction(b) + Fraction(c)
        return made or (math.copysign(0.0, a) * math.copysign(1.0, b) + c if not c else 0.0)
    return a * b + c


def flush(value: float) -> float:
    return math.copysign(0.0, value) if abs(value) < 2.0**-126 else value
