"""Sizes: arithmetic of polynomials, and what may be concluded without knowing their names."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ds4export.passes._size import ONE, Size, divide, operation, size

B, T = size("B"), size("T")
VALUES = {"B": 3, "T": 7}
NAMES = st.sampled_from([B, T, ONE, size(4), size(-2)])


def value_of(s: Size) -> int:
    return sum(number * math.prod(VALUES[n] for n in names) for names, number in s.terms)


@st.composite
def sizes(draw: st.DrawFn) -> Size:
    total = draw(NAMES)
    for _ in range(draw(st.integers(0, 3))):
        total = operation(draw(st.sampled_from(["Add", "Sub", "Mul"])), total, draw(NAMES))
    return total


@given(sizes(), sizes(), st.sampled_from(["Add", "Sub", "Mul"]))
def test_ring_operations(a: Size, b: Size, op: str) -> None:
    want = {"Add": int.__add__, "Sub": int.__sub__, "Mul": int.__mul__}[op](
        value_of(a), value_of(b)
    )
    assert value_of(operation(op, a, b)) == want


@given(sizes(), sizes())
def test_a_quotient_is_exact(a: Size, b: Size) -> None:
    quotient = divide(a, b)
    if quotient is not None and value_of(b):
        assert value_of(quotient) * value_of(b) == value_of(a)


@given(sizes())
def test_never_negative_is_true(a: Size) -> None:
    assert not a.never_negative or value_of(a) >= 0


@pytest.mark.parametrize(
    ("op", "a", "b", "want"),
    [
        ("Div", -7, 2, -3),
        ("Div", 7, 2, 3),
        ("Mod", -7, 4, 1),
        ("Min", 3, 9, 3),
        ("Max", 3, 9, 9),
    ],
)
def test_numbers_as_onnx_computes_them(op: str, a: int, b: int, want: int) -> None:
    assert operation(op, size(a), size(b)).number == want


def test_what_comes_out_even() -> None:
    assert operation("Div", size(8) * B * T, size(4) * T) == size(2) * B
    assert operation("Mod", size(128) * B, size(128)) == size(0)
    assert operation("Max", B, B) == B


def test_what_does_not_is_a_name_equal_for_equal_operands() -> None:
    half = operation("Div", T + size(3), size(4))
    assert str(half) == "Div(3 + T, 4)"
    assert half == operation("Div", size(3) + T, size(4))
    assert half.number is None
    assert half.never_negative
    assert not operation("Div", T - size(3), size(4)).never_negative
    assert operation("Div", size(5), size(0)).number is None


def test_plain_are_dimensions_of_inputs() -> None:
    assert B.is_plain
    assert (size(2) * B * T).is_plain
    assert not (B + ONE).is_plain
    assert not size("nonzero_3.1").is_plain
