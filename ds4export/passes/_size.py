"""Sizes as polynomials: what is known of a dimension before a step runs.

    4096                 a number
    B                    a dimension of a graph input, known by name
    B·T + 3              sums and products of both
    Div(T + 3, 4)        a quotient that does not come out even is a name of its own

Owns the arithmetic. Refuses nothing: what it cannot simplify becomes a name, equal for equal operands.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

SIGNED = "±"  # first character of a name that may stand for a negative number
Term = tuple[tuple[str, ...], int]  # sorted names, coefficient


@dataclass(frozen=True)
class Size:
    """Σ coefficient · product of names, in a canonical order: equal sizes compare equal."""

    terms: tuple[Term, ...]

    @property
    def number(self) -> int | None:
        """The value, where no name is in it."""
        if not self.terms:
            return 0
        (names, number), *rest = self.terms
        return None if names or rest else number

    @property
    def names(self) -> frozenset[str]:
        return frozenset(name for names, _ in self.terms for name in names)

    @property
    def never_negative(self) -> bool:
        """Whether it is at least 0 whatever dimensions its names stand for."""
        signed = any(name.startswith(SIGNED) for name in self.names)
        return not signed and all(number >= 0 for _, number in self.terms)

    @property
    def is_plain(self) -> bool:
        """Whether it is a product of dimensions of the graph's inputs: a step has at least one of each."""
        return len(self.terms) == 1 and all(name.isidentifier() for name in self.names)

    def __add__(self, other: Size) -> Size:
        return _sum((*self.terms, *other.terms))

    def __sub__(self, other: Size) -> Size:
        return _sum((*self.terms, *((names, -number) for names, number in other.terms)))

    def __mul__(self, other: Size) -> Size:
        return _sum((tuple(sorted((*a, *b))), m * n) for a, m in self.terms for b, n in other.terms)

    def __str__(self) -> str:
        if self.number is not None:
            return str(self.number)
        return " + ".join(
            "·".join(([str(n)] if n != 1 or not names else []) + list(names))
            for names, n in self.terms
        )


def size(value: int | str) -> Size:
    """A number, or a dimension known by name."""
    return _sum([((), value)]) if isinstance(value, int) else Size((((value,), 1),))


def operation(op: str, a: Size, b: Size) -> Size:
    """The result of an ONNX integer operator on two sizes."""
    simple = {"Add": Size.__add__, "Sub": Size.__sub__, "Mul": Size.__mul__}
    if op in simple:
        return simple[op](a, b)
    m, n = a.number, b.number
    if m is not None and n is not None and not (n == 0 and op in ("Div", "Mod")):
        return size(_on_numbers(op, m, n))
    if op in ("Min", "Max"):
        return a if a == b else _named(op, *sorted((a, b), key=str))
    quotient = divide(a, b)
    if quotient is not None:
        return quotient if op == "Div" else size(0)
    return _named(op, a, b)


def _named(op: str, a: Size, b: Size) -> Size:
    signs = (a.never_negative, b.never_negative)
    signed = not (any(signs) if op == "Max" else all(signs))
    return size(f"{SIGNED if signed else ''}{op}({a}, {b})")


def divide(a: Size, b: Size) -> Size | None:
    """a / b where it comes out even, whatever the names stand for; b is one term."""
    if len(b.terms) != 1:
        return ONE if a == b and b.terms else None
    names, number = b.terms[0]
    out = []
    for term, coefficient in a.terms:
        rest = list(term)
        for name in names:
            if name not in rest:
                return None
            rest.remove(name)
        if coefficient % number:
            return None
        out.append((tuple(rest), coefficient // number))
    return _sum(out)


def _on_numbers(op: str, m: int, n: int) -> int:
    if op == "Min":
        return min(m, n)
    if op == "Max":
        return max(m, n)
    if op == "Mod":
        return m % n  # ONNX and Python: the sign of the divisor
    assert op == "Div", f"no integer arithmetic for {op}"
    return abs(m) // abs(n) * (1 if (m < 0) == (n < 0) else -1)  # ONNX truncates


def _sum(terms: Iterable[Term]) -> Size:
    total: dict[tuple[str, ...], int] = {}
    for names, number in terms:
        total[names] = total.get(names, 0) + number
    return Size(tuple(sorted((t for t in total.items() if t[1]), key=lambda t: t[0])))


ONE = size(1)
