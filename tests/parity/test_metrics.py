"""Differences and flips: what counts, what is named, and in which order things are looked at."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest

from ds4export.parity.choices import BF16_ULP, FLOAT32_MARGIN, Flips, compare_choices
from ds4export.parity.metrics import Difference, difference, equal_bits

F = np.float32
LIVE = np.ones((1, 1), bool)


def test_equal_arrays_differ_in_nothing() -> None:
    a = np.arange(6, dtype=F).reshape(2, 3)
    d = difference(a, a.copy())
    assert (d.relative, d.row, d.largest, d.identical, d.problem) == (0, 0, 0, 1, "")
    assert d.cosine == pytest.approx(1)


def test_shape_and_dtype_come_first() -> None:
    a = np.full((2, 3), np.nan, F)
    assert difference(a, a[:1]).problem == "shape [2, 3], reference [1, 3]"
    assert difference(a, a.astype(np.float64)).problem == "dtype float32, reference float64"


def test_places_of_nan_and_infinity_come_before_values() -> None:
    want = np.ones((2, 3), F)
    got = want.copy()
    got[1, 2] = np.nan
    got[0, 0] = 99
    d = difference(got, want)
    assert d.problem.startswith("NaN in other places than the reference, 1 of 6, first at [1, 2]")
    assert d.relative == math.inf
    got[1, 2] = -np.inf
    want[1, 2] = np.inf
    assert difference(got, want).problem.startswith("infinity in other places")


def test_nan_in_the_same_places_is_agreement() -> None:
    want = np.array([[1, np.nan], [np.inf, 2]], F)
    d = difference(want.copy(), want)
    assert d.problem == ""
    assert d.relative == 0


def test_the_worst_element_is_named_with_both_values() -> None:
    want = np.ones((2, 2, 4), F)
    got = want.copy()
    got[1, 0, 3] = 3
    got[0, 1, 2] = 1.5
    d = difference(got, want)
    assert d.index == (1, 0, 3)
    assert (d.got, d.want) == (3, 1)
    assert d.row == pytest.approx(1.0)
    assert d.where() == "at [1, 0, 3]: 3, reference 1"


def test_padding_does_not_count_and_indices_stay_those_of_the_whole() -> None:
    want = np.ones((2, 3, 4), F)
    got = want.copy()
    got[0, 2] = np.nan
    got[1, 1, 2] = 2
    live = np.array([[True, True, False], [True, True, True]])
    assert difference(got, want, live).index == (1, 1, 2)
    assert difference(got, want, np.zeros((2, 3), bool)) == Difference()


def test_something_instead_of_zero_is_infinitely_wrong() -> None:
    assert difference(np.ones((1, 2), F), np.zeros((1, 2), F)).relative == math.inf
    assert difference(np.zeros((1, 2), F), np.zeros((1, 2), F)).relative == 0


def test_bfloat16_is_compared_as_it_is() -> None:
    want = np.ones((1, 4), ml_dtypes.bfloat16)
    got = want.copy()
    got[0, 0] = 1.0078125
    d = difference(got, want)
    assert d.identical == 0.75
    assert d.largest == 0.0078125


def test_merging_keeps_the_worst_and_pools_the_squares() -> None:
    one = difference(np.array([[1.1, 1.0]], F), np.ones((1, 2), F))
    exact = difference(np.ones((1, 6), F), np.ones((1, 6), F))
    both = exact.merged(one)
    assert both.row == one.row
    assert both.index == one.index
    assert both.identical == pytest.approx(7 / 8)
    assert both.pooled == pytest.approx(one.relative * math.sqrt(2 / 8))
    assert both.merged(Difference(problem="NaN")).pooled == math.inf


def test_nan_equals_nan_bit_for_bit() -> None:
    a = np.array([np.nan, 1, 2], F)
    assert equal_bits(a, np.array([np.nan, 1, 3], F)).tolist() == [True, True, False]


def _flips(
    got: list[int], want: list[int], scores: list[float], *, official: bool = False
) -> Flips:
    mine, theirs = np.array([[got]]), np.array([[want]])
    return compare_choices(mine, theirs, LIVE, lambda _: np.array(scores), official=official)


def test_the_order_of_a_choice_does_not_matter() -> None:
    flips = _flips([2, 0, -1], [0, 2, -1], [3, 1, 2])
    assert (flips.flipped, flips.total, flips.problem) == (0, 2, "")


def test_a_flip_between_equal_scores_is_explained() -> None:
    flips = _flips([0, 2], [0, 1], [3, 1, 1])
    assert (flips.flipped, flips.unexplained, flips.margin) == (1, 0, 0)


@pytest.mark.parametrize(("official", "ulp"), [(False, FLOAT32_MARGIN), (True, BF16_ULP)])
def test_a_flip_is_explained_up_to_its_margin(official: bool, ulp: float) -> None:
    near = _flips([0, 2], [0, 1], [3, 1, 1 - ulp * 0.9], official=official)
    far = _flips([0, 2], [0, 1], [3, 1, 1 - ulp * 1.1], official=official)
    assert (near.unexplained, far.unexplained) == (0, 1)
    assert far.index == (0, 0)
    assert (far.worst, far.of) == (1, 2)


def test_what_no_margin_explains() -> None:
    assert _flips([1, 1], [0, 1], [1, 1, 1]).problem == "an index stands twice in a list"
    assert _flips([0, -1], [0, 1], [1, 1, 1]).problem == "1 indices, reference 2"
    assert _flips([0, 7], [0, 1], [1, 1, 1]).problem == "2 indices, reference 2"
    hidden = _flips([0, 2], [0, 1], [1, 1, -math.inf])
    assert hidden.problem == "an index that is not visible was chosen"
    assert hidden.unexplained == 1


def test_padding_chooses_what_it_likes() -> None:
    got, want = np.array([[[5]]]), np.array([[[0]]])
    dead = np.zeros((1, 1), bool)
    assert compare_choices(got, want, dead, lambda _: np.zeros(1), official=False).flipped == 0
