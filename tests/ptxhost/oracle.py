"""What each opcode computes, once more: Python integers and fractions, from the PTX manual, one function per root.

`oracle(opcode)` takes sources as bits (Python integers) and returns the bits of the result, or None where only NaN
is asked for. Nothing here is shared with plugins/host.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import ml_dtypes
import numpy as np

from tests.ptxhost.integers import INTEGER
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
    return INTEGER[root](modifiers, kind)


def _pair(high: Bits, low: Bits) -> int:
    """0x7fff is NaN in both formats of half size."""
    return (0x7FFF if high is NAN else high) << 16 | (0x7FFF if low is NAN else low)


def _pairwise(half: Callable[..., Bits]) -> Callable[..., Bits]:
    def both(*sources: int) -> Bits:
        low, high = half(*(s & 0xFFFF for s in sources)), half(*(s >> 16 for s in sources))
        return _pair(high, low)

    return both


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
