"""The search for the first tensor that diverges in a whole run, which needs no look at single ops."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from ds4export.parity.end_to_end import EndToEndTally
from ds4export.parity.metrics import difference
from ds4export.parity.verify import Verification, VerifyOptions
from tests.parity.fault import FLOAT32
from tests.parity.faults import FAULTS, Bench


def whole_line(bench: Bench, name: str) -> str:
    """What the search alone says about an artefact with a fault."""
    fault = next(f for f in FAULTS if f.name == name)
    report = bench.verify(fault, 8)
    assert bench.last is not None
    whole = bench.last.whole
    assert whole is not None
    assert whole.first(), f"end to end saw nothing of: {report.artefact}"
    return whole.first()


def test_a_body_is_found_by_its_output(bench: Bench) -> None:
    line = whole_line(bench, "nibbles of FP4 weights swapped")
    assert line.startswith("first divergence: layer 0, moe, relative error 1.")
    assert " at position " in line


def test_a_choice_is_named_with_its_margin(bench: Bench) -> None:
    line = whole_line(bench, "no top-k: the first entries instead of the best")
    assert line.startswith("first divergence: layer 1, indexer top-k, ")
    assert " of 8 indices at position " in line
    assert ", margin " in line


def test_wrong_state_is_found_in_the_step_that_wrote_it(bench: Bench) -> None:
    line = whole_line(bench, "ape phase counted from the chunk")
    assert line.startswith("first divergence: layer 1, compressor compress_csa pending_out")


def test_a_sound_run_has_nothing_to_find(bench: Bench, float32_artefact: Path) -> None:
    fault = next(f for f in FAULTS if f.numerics == FLOAT32)
    report = bench.report(replace(fault, name="none"), float32_artefact, 2)
    assert report.first_divergence == ""
    assert bench.last is not None
    assert bench.last.whole is not None
    assert bench.last.whole.first() == ""
    assert isinstance(bench.last, Verification)
    assert bench.last.options == VerifyOptions()


def test_a_tie_explains_a_run_that_goes_apart() -> None:
    tally = EndToEndTally(official=False)
    want = np.ones((1, 2, 4), np.float32)
    assert not tally.tensor("streams", want * 2, want, np.ones((1, 2), bool))
    (failed,) = tally.checks()
    (forgiven,) = tally.checks("a tie: first divergence: layer 1, indexer top-k")
    assert failed.failed
    assert not forgiven.failed
    assert forgiven.detail.endswith("; a tie: first divergence: layer 1, indexer top-k")


def test_official_runs_are_judged_beside_their_noise() -> None:
    tally = EndToEndTally(official=True)
    want, live = np.ones((1, 2, 4), np.float32), np.ones((1, 2), bool)
    assert tally.tensor("streams", want * 1.9, want, live)
    assert tally.checks()[0].failed
    tally.floors["streams"] = difference(want * 1.5, want)
    assert not tally.checks()[0].failed
