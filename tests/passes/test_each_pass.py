"""Every pass on small models: golden text, reasons, a second run, equal outputs; its docstring is complete."""

from __future__ import annotations

import re

import numpy as np
import pytest

from ds4export.graph.verify import graph_problems
from ds4export.passes import PIPELINE, TENSORRT_PIPELINE, run_pass
from ds4export.passes.drop_bodies import drop_bodies
from ds4export.passes.pack_caches import pack_caches
from tests.passes.build import LEVELS, outputs
from tests.passes.cases import CASES, Case
from tests.passes.golden import FOLDER, PASSES, golden_text, text_of

EVERY = pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
BY_NAME = pytest.mark.parametrize("name", PASSES)
SECTIONS = ("Before", "After", "Why", "Refuses", "Needs", "Promises")


@BY_NAME
def test_text_is_the_recorded_one(name: str) -> None:
    recorded = (FOLDER / f"{name}.txt").read_text(encoding="utf-8")
    assert golden_text(name) == recorded, "if it should change: python -m tests.passes.golden"


@BY_NAME
def test_has_a_case_that_fires_and_one_that_does_not(name: str) -> None:
    assert {c.fires for c in CASES if c.rule.name == name} == {True, False} or name in MIXED


# every case of these rewrites something: what they leave alone stands beside what they rewrite
MIXED = {"drop_identities"}


@EVERY
def test_fires_or_says_why(case: Case) -> None:
    _, outcome = run_pass(case.model(), case.rule)
    assert bool(outcome.rewrites) == case.fires
    assert case.reason in outcome.explain()
    if not case.fires and not case.reason:
        assert outcome.explain().endswith("nothing here has the form it looks for")


@EVERY
def test_leaves_a_sound_graph_that_it_does_not_change_again(case: Case) -> None:
    model, _ = run_pass(case.model(), case.rule)
    assert graph_problems(model) == []
    before = text_of(model)
    model, again = run_pass(model, case.rule)
    assert again.rewrites == 0
    assert text_of(model) == before


# what these leave has no body that could run
FOR_PLUGINS = (drop_bodies, pack_caches)


@pytest.mark.parametrize(
    "case", [c for c in CASES if c.fires and c.rule not in FOR_PLUGINS], ids=lambda c: c.id
)
def test_outputs_are_equal_bit_by_bit(case: Case, seed: int) -> None:
    want = outputs(case.model(), LEVELS[0], seed)
    model, _ = run_pass(case.model(), case.rule)
    for level in LEVELS:
        got = outputs(model, level, seed)
        for name, array in want.items():
            np.testing.assert_array_equal(got[name], array, err_msg=f"{name} at {level}")


@BY_NAME
def test_docstring_has_every_section_and_says_what_it_needs(name: str) -> None:
    doc, one = PASSES[name].doc, PASSES[name]
    starts = [re.search(rf"^ *{word}  ?\S?|\s{word}  \S", doc, re.M) for word in SECTIONS]
    assert all(starts), f"missing: {[w for w, s in zip(SECTIONS, starts, strict=True) if not s]}"
    assert doc.splitlines()[0].endswith(".")
    needs = doc[doc.index("Needs ") : doc.index("Promises ")]
    assert all(f" {need}" in needs for need in one.needs) if one.needs else "nothing" in needs
    promises = doc[doc.index("Promises ") :]
    assert all(f" {promise}" in promises for promise in one.promises)


def test_a_pass_is_named_after_its_file() -> None:
    assert all(p.transform.__module__ == f"ds4export.passes.{p.name}" for p in PASSES.values())


def test_names_of_golden_files() -> None:
    assert {path.stem for path in FOLDER.iterdir()} == set(PASSES)


def test_every_pass_is_in_a_pipeline() -> None:
    steps = [s.run.name for p in (PIPELINE, TENSORRT_PIPELINE) for s in p.steps]
    assert len(steps) == len(set(steps)) == len(PASSES)
