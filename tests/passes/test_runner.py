"""The runner: checks, counts, stamps, reasons, texts between passes."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from ds4export.errors import ExportError
from ds4export.graph.verify import DOMAIN as VERIFY_DOMAIN
from ds4export.graph.verify import LAYER_DOMAIN as VERIFY_LAYER_DOMAIN
from ds4export.ops._define import DOMAIN as OPS_DOMAIN
from ds4export.passes import Pipeline, Step, TextWatch, run_pass, run_passes
from ds4export.passes._bodies import DOMAIN, LAYER_DOMAIN, bodies
from ds4export.passes._run import Tally, a_pass
from ds4export.passes.drop_identities import drop_identities
from ds4export.passes.fuse_clips import fuse_clips
from tests.passes.build import call, probe

PIPELINE = Pipeline(
    "test", ("bodies",), (Step(fuse_clips, "first"), Step(drop_identities, "second"))
)


def model() -> ir.Model:
    return probe(lambda x: x.clip(-1.0, 1.0), call(x=("B", 4)))


@a_pass(promises=("a broken graph",))
def break_version(model: ir.Model, tally: Tally) -> ir.Model:
    """Break an invariant."""
    model.ir_version = 9
    tally.rewrote()
    return model


def test_domains_are_those_of_the_stages_before() -> None:
    assert DOMAIN == VERIFY_DOMAIN == OPS_DOMAIN
    assert LAYER_DOMAIN == VERIFY_LAYER_DOMAIN


def test_counts_and_the_facts_of_the_stage_line() -> None:
    _, report = run_passes(model(), PIPELINE)
    assert [(o.name, o.rewrites) for o in report.outcomes] == [
        ("fuse_clips", 1),
        ("drop_identities", 1),
    ]
    assert report.facts == "2 rewrites in 2 of 2 passes"
    assert report.outcomes[0].num_nodes > report.outcomes[1].num_nodes
    _, again = run_passes(model(), Pipeline("none", ("bodies",), (Step(fuse_clips, ""),) * 2))
    assert again.facts == "1 rewrites in 1 of 2 passes"


def test_only_new_nodes_are_stamped() -> None:
    changed, _ = run_pass(model(), fuse_clips)
    (body,) = bodies(changed)
    stamps = {n.op_type: n.metadata_props.get("pass") for n in body}
    assert stamps == {"Constant": None, "Clip": "fuse_clips", "Identity": None}


def test_a_pass_that_breaks_the_graph_is_named() -> None:
    broken = Pipeline("broken", (), (Step(break_version, ""),))
    with pytest.raises(ExportError, match="breaks 1 of its invariants") as caught:
        run_passes(model(), broken)
    assert caught.value.where == "after break_version"
    assert "IR version 9" in caught.value.found


def test_a_broken_graph_is_refused_before_the_first_pass() -> None:
    given = model()
    given.graph.inputs[0].dtype = ir.DataType.UINT8
    with pytest.raises(ExportError, match="invariants") as caught:
        run_passes(given, PIPELINE)
    assert caught.value.where == "before test"


def test_texts_and_diff_between_passes() -> None:
    watch = TextWatch()
    run_passes(model(), PIPELINE, watch=watch)
    assert [name for name, _ in watch.texts] == ["", "fuse_clips", "drop_identities"]
    diff = watch.diff("", "fuse_clips").splitlines()
    assert "-  max = Max(x, -1.0)" in diff
    assert "+  min = Clip(x, -1.0, 1.0)" in diff
    assert watch.diff("fuse_clips", "fuse_clips") == ""


def test_reasons_are_grouped() -> None:
    _, report = run_passes(
        probe(lambda x: x.clip(2.0, 1.0) + x.clip(3.0, 1.0), call(x=("B", 4))), PIPELINE
    )
    assert report.explain().splitlines()[:2] == [
        "fuse_clips: did not fire",
        "  left alone: the lower bound is above the upper: probe.min_4 and 1 more",
    ]
