"""What each opcode computes, once more: Python integers and fractions, from the PTX manual, one function per root.

`oracle(opcode)` takes sources as bits (Python integers) and returns the bits of the result, or None where only NaN
is asked for. Nothing here is shared with plugins/host.
"""

from __future__ import annotations

import math
import operator
import struct
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import ml_dtypes
import numpy as np

from tests.ptxhost.values import (
    FLOATS,
    NAN,
    Bits,
    encoded,
    exact,
    flush,
    fused,
    number,
    signed,
    width,
    wrap,
)


def oracle(opcode: str) -> Callable[..., Bits]:
    """The function of one opcode over bits."""
    root, *modifiers = opcode.split(".")
    kind = modifiers[-1]
    if root == "cvt":
        return _conversion(modifiers)
    if root == "setp":
        return _comparison(modifiers[0], kind)
    if kind.endswith("x2") and root != "cvt":
        return _pairwise(oracle(opcode[:-2]))
    if kind in FLOATS and root in _FLOAT:
        return _FLOAT[root](modifiers, kind)
    return _INTEGER[root](modifiers, kind)


def _pair(high: Bits, low: Bits) -> int:
    """0x7fff is NaN in both formats of half size."""
    return (0x7FFF if high is NAN else high) << 16 | (0x7FFF if low is NAN else low)


def _pairwise(half: Callable[..., Bits]) -> Callable[..., Bits]:
    def both(*sources: int) -> Bits:
        low, high = half(*(s & 0xFFFF for s in sources)), half(*(s >> 16 for s in sources))
        return _pair(high, low)

    return both


def _ints(kind: str, function: Callable[..., int], result: str = "") -> Callable[..., Bits]:
    return lambda *s: wrap(function(*(signed(x, kind) for x in s)), result or kind)


def _divide(a: int, b: int) -> int:
    if b == 0:
        return -1
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


def _remainder(a: int, b: int) -> int:
    return a if b == 0 else a - b * _divide(a, b)


def _mul(m: list[str], k: str) -> Callable[..., Bits]:
    if m[0] == "hi":
        return _ints(k, lambda a, b: (a * b) >> width(k))
    wide = k[0] + str(2 * width(k))
    return _ints(k, lambda a, b: a * b, wide if m[0] == "wide" else k)


def _mad(m: list[str], k: str) -> Callable[..., Bits]:
    result = k[0] + str(2 * width(k)) if m[0] == "wide" else k
    shift = width(k) if m[0] == "hi" else 0
    return lambda a, b, c: wrap((signed(a, k) * signed(b, k) >> shift) + c, result)


def _shift(m: list[str], k: str, left: bool) -> Callable[..., Bits]:
    def move(a: int, n: int) -> Bits:
        n = min(n, width(k))
        return wrap(a << n if left else signed(a, k) >> n, k)

    return move


def _funnel(m: list[str], k: str) -> Callable[..., Bits]:
    def move(low: int, high: int, n: int) -> Bits:
        n = n % 32 if m[1] == "wrap" else min(n, 32)
        both = high << 32 | low
        return wrap(both << n >> 32 if m[0] == "l" else both >> n, "u32")

    return move


def _bfe(m: list[str], k: str) -> Callable[..., Bits]:
    def extract(a: int, at: int, length: int) -> Bits:
        at, length, w = at & 255, length & 255, width(k)
        if not length:
            return 0
        bits = [(a >> (at + i)) & 1 if at + i < w else 0 for i in range(w)]
        sign = (a >> min(at + length - 1, w - 1)) & 1 if k[0] == "s" else 0
        return sum((bits[i] if i < length and at + i < w else sign) << i for i in range(w))

    return extract


def _bfi(m: list[str], k: str) -> Callable[..., Bits]:
    def insert(a: int, b: int, at: int, length: int) -> Bits:
        at, length = at & 255, length & 255
        for i in range(length):
            if at + i < width(k):
                b = b & ~(1 << (at + i)) | ((a >> i & 1 if i < width(k) else 0) << (at + i))
        return b

    return insert


def _prmt(m: list[str], k: str) -> Callable[..., Bits]:
    def permute(a: int, b: int, selector: int) -> Bits:
        data = struct.pack("<II", a, b)
        picked = [(data[selector >> 4 * i & 7], selector >> 4 * i & 8) for i in range(4)]
        return int.from_bytes(bytes((255 * (v >> 7) if s else v) for v, s in picked), "little")

    return permute


def _lop3(m: list[str], k: str) -> Callable[..., Bits]:
    def logic(a: int, b: int, c: int, table: int) -> Bits:
        return sum(
            (table >> ((a >> i & 1) << 2 | (b >> i & 1) << 1 | c >> i & 1) & 1) << i
            for i in range(32)
        )

    return logic


def _dp4a(m: list[str], k: str) -> Callable[..., Bits]:
    def dot(a: int, b: int, c: int) -> Bits:
        parts = zip(
            struct.unpack("<4b", struct.pack("<I", a)),
            struct.unpack("<4b", struct.pack("<I", b)),
            strict=True,
        )
        return wrap(c + sum(x * y for x, y in parts), "s32")

    return dot


def _bfind(m: list[str], k: str) -> Callable[..., Bits]:
    def find(a: int) -> Bits:
        value = signed(a, k)
        return wrap((~value if value < 0 else value).bit_length() - 1, "u32")

    return find


_INTEGER: dict[str, Callable[[list[str], str], Callable[..., Bits]]] = {
    "add": lambda m, k: _ints(k, lambda a, b: a + b),
    "sub": lambda m, k: _ints(k, lambda a, b: a - b),
    "mul": _mul,
    "mad": _mad,
    "div": lambda m, k: _ints(k, _divide),
    "rem": lambda m, k: _ints(k, _remainder),
    "min": lambda m, k: _ints(k, min),
    "max": lambda m, k: _ints(k, max),
    "neg": lambda m, k: _ints(k, lambda a: -a),
    "abs": lambda m, k: _ints(k, abs),
    "and": lambda m, k: lambda a, b: a & b,
    "or": lambda m, k: lambda a, b: a | b,
    "xor": lambda m, k: lambda a, b: a ^ b,
    "not": lambda m, k: lambda a: wrap(~a, k),
    "shl": lambda m, k: _shift(m, k, left=True),
    "shr": lambda m, k: _shift(m, k, left=False),
    "shf": _funnel,
    "popc": lambda m, k: lambda a: a.bit_count(),
    "clz": lambda m, k: lambda a: width(k) - a.bit_length(),
    "brev": lambda m, k: lambda a: int(f"{a:0{width(k)}b}"[::-1], 2),
    "bfind": _bfind,
    "bfe": _bfe,
    "bfi": _bfi,
    "prmt": _prmt,
    "lop3": _lop3,
    "dp4a": _dp4a,
    "selp": lambda m, k: lambda a, b, p: a if p else b,
    "mov": lambda m, k: lambda a: a,
    "cvta": lambda m, k: lambda a: a,
    "testp": lambda m, k: lambda a: int(math.isfinite(number(a, k))),
}


def _arithmetic(operation: str) -> Callable[[list[str], str], Callable[..., Bits]]:
    def make(m: list[str], k: str) -> Callable[..., Bits]:
        mode = next((x for x in m if x in ("rz", "rm", "rp")), "rn")
        ftz, saturate = "ftz" in m, "sat" in m

        def compute(*sources: int) -> Bits:
            values = [flush(v) if ftz else v for v in (number(s, k) for s in sources)]
            if operation == "-":
                values[1] = -values[1]
            made = (
                fused(*values)
                if operation == "fma"
                else exact(values[0], values[1], "*" if operation == "*" else "+")
            )
            return _finished(made, k, mode, ftz=ftz, saturate=saturate)

        return compute

    return make


def _finished(value: Fraction | float, k: str, mode: str, *, ftz: bool, saturate: bool) -> Bits:
    bits = encoded(value, k, mode)
    if bits is NAN:
        return 0 if saturate else NAN
    if ftz:
        return encoded(flush(number(bits, k)), k)
    return encoded(min(max(number(bits, k), 0.0), 1.0), k) if saturate else bits


def _extreme(largest: bool) -> Callable[[list[str], str], Callable[..., Bits]]:
    def make(m: list[str], k: str) -> Callable[..., Bits]:
        def choose(a: int, b: int) -> Bits:
            x, y = number(a, k), number(b, k)
            if math.isnan(x) or math.isnan(y):
                return NAN if math.isnan(x) and math.isnan(y) else b if math.isnan(x) else a
            first = (x, math.copysign(1, x)) > (y, math.copysign(1, y))  # −0 < +0
            return a if first == largest else b

        return choose

    return make


def _sign(change: Callable[[int, int], int]) -> Callable[[list[str], str], Callable[..., Bits]]:
    return lambda m, k: (
        lambda a: NAN if math.isnan(number(a, k)) else change(a, 1 << (width(k) - 1))
    )


def _real(function: Callable[..., float]) -> Callable[[list[str], str], Callable[..., Bits]]:
    """A function that double precision knows well enough to be rounded to float32; of float64, correctly rounded."""

    def make(m: list[str], k: str) -> Callable[..., Bits]:
        def compute(*sources: int) -> Bits:
            values = [flush(v) if "ftz" in m else v for v in (number(s, k) for s in sources)]
            with np.errstate(all="ignore"):
                made = float(function(*(np.float64(v) for v in values)))
            return _finished(made, k, "rn", ftz="ftz" in m, saturate=False)

        return compute

    return make


_FLOAT: dict[str, Callable[[list[str], str], Callable[..., Bits]]] = {
    "add": _arithmetic("+"),
    "sub": _arithmetic("-"),
    "mul": _arithmetic("*"),
    "fma": _arithmetic("fma"),
    "min": _extreme(largest=False),
    "max": _extreme(largest=True),
    "neg": _sign(lambda a, s: a ^ s),
    "abs": _sign(lambda a, s: a & ~s),
    "copysign": lambda m, k: (
        lambda a, b: NAN if math.isnan(number(b, k)) else (a >> 31) << 31 | b & 0x7FFFFFFF
    ),
    "div": _real(np.divide),
    "rcp": _real(lambda a: np.float64(1) / a),
    "sqrt": _real(np.sqrt),
    "rsqrt": _real(lambda a: np.float64(1) / np.sqrt(a)),
    "ex2": _real(np.exp2),
    "lg2": _real(np.log2),
    "sin": _real(np.sin),
    "cos": _real(np.cos),
    "tanh": _real(np.tanh),
}


def _comparison(name: str, k: str) -> Callable[..., Bits]:
    is_float = k in FLOATS
    if is_float and name in ("nan", "num"):
        return lambda a, b: int(
            (math.isnan(number(a, k)) or math.isnan(number(b, k))) == (name == "nan")
        )
    unordered = is_float and name.endswith("u")
    base = {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}.get(name, name[:2])
    compare = getattr(operator, base)

    def decide(a: int, b: int) -> Bits:
        x: Any = number(a, k) if is_float else signed(a, k)
        y: Any = number(b, k) if is_float else signed(b, k)
        if is_float and (math.isnan(x) or math.isnan(y)):
            return int(unordered)
        return int(compare(x, y))

    return decide


def _conversion(m: list[str]) -> Callable[..., Bits]:
    dst, src = m[-2:]
    if dst.endswith("x2") or src.endswith("x2"):
        return _packed_conversion(m, dst, src)
    mode = next((x for x in m if x in ("rn", "rzi", "rni", "rmi", "rpi")), "")
    if src in FLOATS and dst in FLOATS:
        return _float_to_float(mode, dst, src, ftz="ftz" in m, saturate="sat" in m)
    if src in FLOATS:
        return _float_to_integer(mode, dst, src, ftz="ftz" in m)
    if dst in FLOATS:
        return lambda a: encoded(Fraction(signed(a, src)), dst)
    low = -(1 << (width(dst) - 1)) if dst[0] == "s" else 0
    high = (1 << (width(dst) - int(dst[0] == "s"))) - 1
    if "sat" in m:
        return lambda a: wrap(min(max(signed(a, src), low), high), dst)
    return lambda a: wrap(signed(a, src), dst)


_ROUND: dict[str, Callable[[float], int]] = {
    "rzi": math.trunc,
    "rni": round,
    "rmi": math.floor,
    "rpi": math.ceil,
}


def _float_to_float(
    mode: str, dst: str, src: str, *, ftz: bool, saturate: bool
) -> Callable[..., Bits]:
    def convert(a: int) -> Bits:
        value = number(a, src)
        if mode in _ROUND and math.isfinite(value):
            value = math.copysign(float(_ROUND[mode](value)), value)
        if ftz:
            value = flush(value)
        return _finished(value, dst, "rn", ftz=False, saturate=saturate)

    return convert


def _float_to_integer(mode: str, dst: str, src: str, *, ftz: bool) -> Callable[..., Bits]:
    low = -(1 << (width(dst) - 1)) if dst[0] == "s" else 0
    high = (1 << (width(dst) - int(dst[0] == "s"))) - 1

    def convert(a: int) -> Bits:
        value = flush(number(a, src)) if ftz else number(a, src)
        if math.isnan(value):
            return 1 << 63 if width(dst) == 64 else 0
        if math.isinf(value):
            return wrap(high if value > 0 else low, dst)
        return wrap(min(max(_ROUND[mode](value), low), high), dst)

    return convert


_SMALL: dict[str, Any] = {"e4m3x2": ml_dtypes.float8_e4m3fn, "e5m2x2": ml_dtypes.float8_e5m2}
_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def _packed_conversion(m: list[str], dst: str, src: str) -> Callable[..., Bits]:
    if dst in ("bf16x2", "f16x2") and src == "f32":
        half = _conversion(["rn", dst[:-2], "f32"])
        return lambda a, b: _pair(half(a), half(b))
    size = 4 if "e2m1x2" in (dst, src) else 8
    if src == "f32":
        return lambda a, b: (
            _small_code(number(a, "f32"), dst) << size | _small_code(number(b, "f32"), dst)
        )
    return lambda a: _half_of(a >> size, src) << 16 | _half_of(a % (1 << size), src)


def _small_code(value: float, kind: str) -> int:
    """satfinite: beyond the range the largest number of that sign; NaN is the format's NaN, of e2m1 +6."""
    if kind == "e2m1x2":
        if math.isnan(value):
            return 7
        nearest = min(range(8), key=lambda c: (abs(_E2M1[c] - min(abs(value), 6.0)), c % 2))
        return nearest | 8 * int(math.copysign(1, value) < 0)
    dtype = _SMALL[kind]
    if math.isnan(value):
        return 0x7F
    largest = float(ml_dtypes.finfo(dtype).max)
    return int(
        np.array(min(max(value, -largest), largest), np.float32).astype(dtype).view(np.uint8)
    )


def _half_of(code: int, kind: str) -> int:
    if kind == "e2m1x2":
        value = math.copysign(_E2M1[code & 7], -1 if code & 8 else 1)
    else:
        value = float(np.uint8(code).view(_SMALL[kind]))
    bits = encoded(value, "f16")
    return 0x7FFF if bits is NAN else bits
