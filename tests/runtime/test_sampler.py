"""Sampling against a computation that a reader can follow token by token."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest

from ds4export.errors import RuntimeInputError
from ds4export.runtime.sampler import Sampler, Sampling


def plain_choice(logits: list[float], temperature: float, top_p: float, uniform: float) -> int:
    """Sort by probability (ties: lowest id first), keep until top_p is reached, invert the distribution."""
    largest = max(logits)
    weights = [math.exp((x - largest) / temperature) for x in logits]
    total = sum(weights)
    order = sorted(range(len(logits)), key=lambda i: (-weights[i], i))
    kept, mass = [], 0.0
    for i in order:
        kept.append(i)
        mass += weights[i] / total
        if mass >= top_p:
            break
    left = uniform * mass
    for i in kept:
        left -= weights[i] / total
        if left < 0:
            return i
    return kept[-1]


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.9, 1.0])
def test_choices_equal_the_plain_computation(
    rng: np.random.Generator, seed: int, temperature: float, top_p: float
) -> None:
    sampler = Sampler(Sampling(temperature, top_p, seed))
    uniforms = np.random.default_rng(seed)
    for _ in range(200):
        logits = (rng.standard_normal(40) * 3).astype(np.float32)
        expected = plain_choice(logits.tolist(), temperature, top_p, uniforms.random())
        assert sampler.choose(logits) == expected


def test_frequencies_follow_the_distribution(seed: int) -> None:
    logits = np.log(np.array([0.5, 0.25, 0.125, 0.125], np.float32))
    sampler = Sampler(Sampling(seed=seed))
    counts = Counter(sampler.choose(logits) for _ in range(4000))
    for token, probability in enumerate([0.5, 0.25, 0.125, 0.125]):
        deviation = math.sqrt(4000 * probability * (1 - probability))
        assert abs(counts[token] - 4000 * probability) < 4 * deviation


def test_top_p_cuts_what_lies_beyond(seed: int) -> None:
    """0.5 + 0.25 reach 0.6, so the other two never come; 0.5 alone reaches 0.5 exactly."""
    logits = np.log(np.array([0.125, 0.5, 0.125, 0.25], np.float32))
    assert {Sampler(Sampling(1.0, 0.6, s)).choose(logits) for s in range(200)} == {1, 3}
    assert {Sampler(Sampling(1.0, 0.49, s)).choose(logits) for s in range(50)} == {1}


def test_ties_go_to_the_lowest_id() -> None:
    logits = np.array([0, 2, 1, 2, 2], np.float32)
    assert Sampler(Sampling(temperature=0)).choose(logits) == 1
    assert {Sampler(Sampling(1.0, 1e-9, s)).choose(logits) for s in range(50)} == {1}


def test_temperature_zero_needs_no_luck() -> None:
    logits = np.array([0, 2, 1], np.float32)
    sampler = Sampler(Sampling(temperature=0))
    assert {sampler.choose(logits) for _ in range(20)} == {1}


@pytest.mark.parametrize("temperature", [1e-320, 1e-30, 1e30])
def test_extreme_temperatures_neither_overflow_nor_warn(temperature: float) -> None:
    logits = np.array([-1e30, 0, 1e30, -3e38], np.float32)
    expected = {2} if temperature < 1e20 else {0, 1, 2, 3}
    assert {Sampler(Sampling(temperature, 1.0, s)).choose(logits) for s in range(20)} <= expected


def test_same_seed_same_choices(seed: int) -> None:
    logits = np.zeros(1000, np.float32)
    first, second, other = (Sampler(Sampling(seed=s)) for s in (seed, seed, seed + 1))
    drawn = [[s.choose(logits) for _ in range(20)] for s in (first, second, other)]
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize(
    ("arguments", "flag"),
    [
        ({"temperature": -0.1}, "--temperature"),
        ({"temperature": math.nan}, "--temperature"),
        ({"temperature": math.inf}, "--temperature"),
        ({"top_p": 0.0}, "--top-p"),
        ({"top_p": 1.1}, "--top-p"),
        ({"top_p": math.nan}, "--top-p"),
        ({"seed": -1}, "--seed"),
    ],
)
def test_settings_out_of_range(arguments: dict, flag: str) -> None:
    with pytest.raises(RuntimeInputError, match=f"{flag} is out of range") as caught:
        Sampling(**arguments)
    assert caught.value.found
    assert caught.value.expected


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_no_numbers_are_refused(value: float, temperature: float) -> None:
    logits = np.array([0, value, 1], np.float32)
    with pytest.raises(RuntimeInputError, match="the logits are not finite") as caught:
        Sampler(Sampling(temperature)).choose(logits)
    assert caught.value.found == "1 of 3 values"
