"""Packed caches in the lowered graph of a checkpoint: which tensors change, what reads them, what is refused."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from ds4export.errors import ExportError
from ds4export.ops import ALL_OPS
from ds4export.passes import TENSORRT_PIPELINE, run_passes
from ds4export.passes.pack_caches import pack_caches
from tests.passes.cases import _states
from tests.passes.recorded import main_graph

BF16, INT8 = ir.DataType.BFLOAT16, ir.DataType.INT8
OPTION = ("pack_caches",)


@pytest.fixture(scope="module")
def lowered() -> ir.Model:
    return run_passes(main_graph("tiny-a", official=True), TENSORRT_PIPELINE, options=OPTION)[0]


def last(value: ir.Value) -> int | ir.SymbolicDim:
    assert value.shape is not None
    return value.shape[-1]


def test_state_is_packed_in_and_out(lowered: ir.Model) -> None:
    widths = {"window": 200, "entries": 200, "index_keys": 68}
    found = {v.name: v for v in (*lowered.graph.inputs, *lowered.graph.outputs)}
    states = [v for v in lowered.graph.inputs if (v.name or "").startswith("state.")]
    assert len(states) == 15
    for value in states:
        out, width = found[f"{value.name}_out"], widths.get((value.name or "").rsplit(".", 1)[-1])
        for one in (value, out):
            if width is None:
                assert one.dtype == ir.DataType.FLOAT
            else:
                assert (one.dtype, last(one)) == (INT8, width), one.name
        assert value.shape == out.shape


def test_exactly_the_declared_inputs_are_packed(lowered: ir.Model) -> None:
    seen = set()
    for node in lowered.graph:
        op = ALL_OPS[node.op_type]
        for name, value in zip(op.inputs, node.inputs, strict=True):
            is_packed = value is not None and (value.name or "").startswith("state.")
            is_packed &= value is not None and value.dtype == INT8
            assert is_packed == (name in op.cache), f"{node.name}: {name}"
            seen |= {(node.op_type, name)} if is_packed else set()
        for name, value in zip(op.outputs, node.outputs, strict=True):
            source = (op.aliases or {}).get(name, "")
            assert (value.dtype == INT8) == (source in op.cache), f"{node.name}: {name}"
    assert seen == {(op.name, name) for op in ALL_OPS.values() for name in op.cache}


def test_it_runs_only_where_it_is_asked_for() -> None:
    model, report = run_passes(main_graph("tiny-a", official=True), TENSORRT_PIPELINE)
    assert [o.name for o in report.outcomes] == ["inline_layers", "drop_bodies"]
    assert all(v.dtype != INT8 for v in model.graph.inputs if (v.name or "").startswith("state."))


def test_an_unknown_option_is_a_bug() -> None:
    with pytest.raises(AssertionError, match="are no optional passes of tensorrt"):
        run_passes(main_graph("tiny-a", official=True), TENSORRT_PIPELINE, options=("drop_bodies",))


@pytest.mark.parametrize(
    ("widths", "found"),
    [
        ({"window": 516}, "516 wide, 64 of them roped"),
        ({"entries": 60}, "60 wide, 64 of them roped"),
        ({"index_keys": 32}, "32 wide"),
    ],
)
def test_a_width_without_a_packed_form_is_refused(widths: dict[str, int], found: str) -> None:
    with pytest.raises(ExportError, match="of this width cannot be packed") as refusal:
        pack_caches(_states(**widths))
    assert found in str(refusal.value)
    assert f"where:    state.layers.0.{next(iter(widths))}" in str(refusal.value)


def test_float32_rows_are_refused() -> None:
    model = _states(window=512)
    model.graph.inputs[1].type = ir.TensorType(ir.DataType.FLOAT)
    with pytest.raises(ExportError, match=r"the rows of `state.layers.0.window` cannot be packed"):
        pack_caches(model)


def test_a_graph_with_bodies_is_refused() -> None:
    with pytest.raises(ExportError, match="caches are packed for plugins only: the ONNX bodies"):
        pack_caches(main_graph("tiny-a", official=True))


def test_rows_without_frequencies_are_refused() -> None:
    model = _states(window=512)
    model.graph.inputs[0].name = "table"
    with pytest.raises(ExportError) as refusal:
        pack_caches(model)
    assert "no reader of it takes frequencies" in str(refusal.value)
