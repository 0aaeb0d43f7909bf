"""Coverage is computed from what ran: a run that did not see something says so and fails."""

from __future__ import annotations

from pathlib import Path

import pytest

from ds4export.checkpoint.presets import PRESETS
from ds4export.config import load_config
from ds4export.ops import ALL_OPS
from ds4export.parity import verify
from ds4export.parity.coverage import ITEMS, Coverage
from ds4export.parity.results import COVERAGE
from ds4export.parity.scenario import LIST_BLOCK, SLOT, Scenario, make_scenario
from ds4export.parity.verify import VerifyOptions, verify_artefact
from ds4export.report import Reporter
from tests.parity.faults import DATA

EVERY_RATIO = frozenset({0, 4, 128})


def test_nothing_seen_is_nothing_covered() -> None:
    config = load_config(DATA / "tiny-a" / "checkpoint" / "config.json")
    missing = [c for c in Coverage(config, frozenset(ALL_OPS)).result() if c.failed]
    assert {c.item.name for c in missing} == {i.name for i in ITEMS} - {"several list blocks (CSA)"}
    assert all(c.sentence() == c.item.missing for c in missing)
    closed = next(c for c in missing if c.item.name == "chunk split inside a window (CSA)")
    assert closed.sentence() == "no chunk ended inside a compressor window"


def test_what_an_artefact_cannot_have_is_not_asked_of_it() -> None:
    config = load_config(DATA / "tiny-a" / "checkpoint" / "config.json")
    result = Coverage(config, frozenset({"attention_window", "moe"})).result()
    reasons = {c.item.name: c.not_applicable for c in result}
    assert reasons["top-k cut"] == "no CSA layer in this artefact"
    assert reasons["hash layer"] == "no hash layer in this artefact"
    assert reasons["MTP in decode"] == "no MTP block in this artefact"
    assert reasons["ring wrapped"] == ""


def test_short_lists_cannot_have_several_blocks() -> None:
    config = load_config(DATA / "tiny-a" / "checkpoint" / "config.json")
    covered = {c.item.name: c for c in Coverage(config, frozenset(ALL_OPS)).result()}
    assert covered["several list blocks (CSA)"].not_applicable == "its lists hold 24 keys at most"


def test_a_run_that_stops_early_fails_and_says_what_it_missed(
    float32_artefact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def first_chunk_only(*args: object, **options: object) -> Scenario:
        whole = make_scenario(*args, **options)  # type: ignore[arg-type]
        return Scenario(whole.seed, whole.num_slots, whole.max_context, whole.steps[:1])

    monkeypatch.setattr(verify, "make_scenario", first_chunk_only)
    report = verify_artefact(float32_artefact, VerifyOptions(layers=(1,)), Reporter(num_stages=2))
    assert not report.passed
    assert {c.level for c in report.failures()} == {COVERAGE}
    missed = {c.name: c.detail for c in report.failures()}
    assert missed["decode"] == "no step of one token"
    assert missed["top-k cut"] == "no query saw more entries than index_topk"
    assert missed["ring wrapped"] == "no chunk wrote over older rows of a window ring"
    assert "window closed in prefill (CSA)" not in missed


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_the_scenario_reaches_the_cut_of_any_width(name: str) -> None:
    config = PRESETS[name]
    scenario = make_scenario(config, EVERY_RATIO)
    late = {s.slot: s.position for step in scenario.steps for s in step.late_starts}
    assert late[SLOT["D"]] // 4 > config.index_topk
    assert config.sliding_window + late[SLOT["D"]] // 128 > LIST_BLOCK
    assert scenario.num_tokens < 400
    assert scenario.max_context <= config.max_position_embeddings


def test_a_scenario_is_its_seed() -> None:
    config = load_config(DATA / "tiny-a" / "checkpoint" / "config.json")
    one, same, other = (make_scenario(config, EVERY_RATIO, seed=s) for s in (0, 0, 1))
    ids = [s.steps[2].inputs.ids.tolist() for s in (one, same, other)]
    assert ids[0] == ids[1] != ids[2]
    for step in one.steps:
        assert (step.next_ids[:, :-1] == step.inputs.ids[:, 1:]).all()
