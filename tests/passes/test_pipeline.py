"""The two pipelines as a whole: needs, equal outputs on a recorded checkpoint, and what each leaves behind."""

from __future__ import annotations

from functools import cache

import numpy as np
import onnx_ir as ir
import pytest

from ds4export.graph.verify import DOMAIN, graph_problems
from ds4export.ops import ALL_OPS
from ds4export.passes import PIPELINE, TENSORRT_PIPELINE, Pipeline, run_passes, unmet_needs
from tests.passes.build import LEVELS
from tests.passes.recorded import Logits, checkpoint_of, logits, main_graph

BOTH = pytest.mark.parametrize("pipeline", [PIPELINE, TENSORRT_PIPELINE], ids=lambda p: p.name)
# a first chunk that fills the ring, one that passes a compressor window, then decode
CHUNKS = (21, 6, 1, 1, 1)
SEED = 7


@BOTH
def test_what_a_pass_needs_stands_before_it(pipeline: Pipeline) -> None:
    assert unmet_needs(pipeline) == []
    assert all(step.reason for step in pipeline.steps)


def test_an_unmet_need_is_found() -> None:
    turned = Pipeline("turned", PIPELINE.starts_with, PIPELINE.steps[::-1])
    assert "merge_views needs `constant targets`" in unmet_needs(turned)


@cache
def plain(name: str, official: bool) -> Logits:
    """Logits before any pass, nothing optimised: what the bodies say."""
    checkpoint = checkpoint_of(name)
    model = main_graph(name, official=official)
    return logits(model, checkpoint, LEVELS[0], CHUNKS, SEED)


@pytest.mark.parametrize("official", [True, False], ids=["official", "float32"])
def test_outputs_are_equal_bit_by_bit_at_every_level(official: bool) -> None:
    checkpoint, want = checkpoint_of("tiny-a"), plain("tiny-a", official)
    model, report = run_passes(main_graph("tiny-a", official=official), PIPELINE)
    assert report.rewrites > 100
    # the highest level does what those between do; float32 bodies hold the same forms
    for level in (LEVELS[0], LEVELS[-1]) if official else LEVELS[-1:]:
        got = logits(model, checkpoint, level, CHUNKS, SEED)
        for step, (a, b) in enumerate(zip(got, want, strict=True)):
            np.testing.assert_array_equal(a, b, err_msg=f"step {step} at {level}")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny-c", "tiny-base"])
@pytest.mark.parametrize("official", [True, False], ids=["official", "float32"])
def test_other_checkpoints_too(name: str, official: bool) -> None:
    checkpoint, want = checkpoint_of(name), plain(name, official)
    model, _ = run_passes(main_graph(name, official=official), PIPELINE)
    got = logits(model, checkpoint, LEVELS[-1], CHUNKS, SEED)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_array_equal(a, b)


@cache
def rewritten() -> ir.Model:
    """tiny-a after PIPELINE. Shared: clone it before a change."""
    return run_passes(main_graph("tiny-a", official=True), PIPELINE)[0]


def test_a_second_run_changes_nothing() -> None:
    _, report = run_passes(rewritten().clone(), PIPELINE)
    assert report.rewrites == 0


def test_a_quarter_of_the_nodes_is_gone() -> None:
    before = _inlined(main_graph("tiny-a", official=True))
    assert _inlined(rewritten()) < 0.76 * before


def _inlined(model: ir.Model) -> int:
    """Nodes that ONNX Runtime makes of the layered graph."""
    count = {
        i: sum(1 for n in f.all_nodes() if n.domain != DOMAIN) for i, f in model.functions.items()
    }
    for identifier, function in model.functions.items():
        if function.domain != DOMAIN:
            count[identifier] = sum(count[n.op_identifier()] for n in function)
    return sum(count[n.op_identifier()] for n in model.graph)


def test_the_ring_is_still_read_before_it_is_written() -> None:
    bodies = [f for f in rewritten().functions.values() if f.domain == DOMAIN]
    rings = {f.name: [n for n in f if n.op_type == "ScatterND"] for f in bodies}
    owners = {
        name
        for name, op in ALL_OPS.items()
        if op.aliases and (DOMAIN, name, "") in rewritten().functions
    }
    assert {name for name, writes in rings.items() if writes} == owners
    assert not graph_problems(rewritten())


def test_new_nodes_carry_the_name_of_their_pass() -> None:
    names = {step.run.name for step in PIPELINE.steps}
    stamped = [
        n.metadata_props["pass"]
        for f in rewritten().functions.values()
        for n in f
        if n.metadata_props
    ]
    assert stamped
    assert set(stamped) <= names


def test_the_lowering_leaves_ds4_nodes_with_paths_and_nothing_else() -> None:
    model, report = run_passes(rewritten().clone(), TENSORRT_PIPELINE)
    assert not model.functions
    assert {n.domain for n in model.graph} == {DOMAIN}
    names = [n.name for n in model.graph]
    assert len(names) == len(set(names)) == 101
    assert "layers.3/attn/indexer/compressor/compress_index" in names
    assert [(v.name, v.shape) for v in model.graph.outputs] == [
        (v.name, v.shape) for v in rewritten().graph.outputs
    ]
    assert report.facts == f"{report.rewrites} rewrites in 2 of 2 passes"


def test_every_value_of_the_flat_graph_has_dtype_and_shape() -> None:
    model, _ = run_passes(rewritten().clone(), TENSORRT_PIPELINE)
    assert all(v.dtype is not None and v.shape is not None for n in model.graph for v in n.outputs)


def test_float_divisions_by_ones_are_what_onnx_runtime_contracts() -> None:
    """If this fails, ONNX Runtime keeps 1/x apart from the product: write_reciprocals can go."""
    checkpoint = checkpoint_of("tiny-a")
    model = main_graph("tiny-a", official=True)
    got = logits(model, checkpoint, LEVELS[1], CHUNKS[:1], SEED)
    assert not np.array_equal(got[0], plain("tiny-a", True)[0])
