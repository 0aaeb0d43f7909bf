"""What integer opcodes compute, in Python integers; one maker per root, from modifiers and type."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable

from tests.ptxhost.values import Bits, number, signed, width, wrap


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


INTEGER: dict[str, Callable[[list[str], str], Callable[..., Bits]]] = {
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
