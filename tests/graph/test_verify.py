"""Each invariant of a graph, broken once; the ring that is written before it is read."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir
import pytest

from ds4export.errors import ExportError
from ds4export.graph import assemble
from ds4export.graph.verify import (
    DOMAIN,
    IR_VERSION,
    LAYER_DOMAIN,
    OPSET,
    check_graph,
    graph_problems,
)
from ds4export.ops import _body
from ds4export.ops._body import FLOAT, T
from ds4export.ops._define import DOMAIN as OPS_DOMAIN
from ds4export.ops._ring import gather_pool, history_and_append, scatter_pool
from tests.passes.build import Call, call, model_of, probe, value
from tests.passes.cases import CASES

LAYERS = next(case.model for case in CASES if case.id == "inline_layers-two calls")
RING = call(
    rows=("B", "T", 8),
    ring=("S", "R", 8),
    int_slots=("B",),
    int_positions=("B",),
    int_num_new=("B",),
)


def small() -> ir.Model:
    return probe(lambda x: x.unary("Abs"), call(x=("B", 4)))


def _standard_node(model: ir.Model) -> None:
    made = ir.Node("", "Abs", [model.graph.inputs[0]], name="abs")
    made.outputs[0].name = "abs:y"
    model.graph.append(made)


def _same_node_names(model: ir.Model) -> None:
    for node in model.graph:
        node.name = "twice"


def _same_value_names(model: ir.Model) -> None:
    for node in model.graph:
        node.outputs[0].name = "twice"


def _turned_round(model: ir.Model) -> None:
    first = model.graph[0]
    model.graph.remove(first)
    model.graph.append(first)


def _no_layer_function(model: ir.Model) -> None:
    del model.functions[LAYER_DOMAIN, "half", ""]


def _no_body(model: ir.Model) -> None:
    model.functions[DOMAIN, "probe", ""].name = "other"
    model.functions[DOMAIN, "other", ""] = model.functions.pop((DOMAIN, "probe", ""))


def _computing_layer(model: ir.Model) -> None:
    half = model.functions[LAYER_DOMAIN, "half", ""]
    made = ir.Node("", "Abs", [half.inputs[0]], name="abs")
    made.outputs[0].name = "abs:y"
    half.append(made)


def _custom_body(model: ir.Model) -> None:
    body = model.functions[DOMAIN, "probe", ""]
    made = ir.Node("com.microsoft", "Gelu", [body.inputs[0]])
    made.outputs[0].name = "gelu"
    body.append(made)


def _too_few_inputs(model: ir.Model) -> None:
    model.graph[0].resize_inputs(1)


def _opset(model: ir.Model) -> None:
    model.functions[DOMAIN, "probe", ""].opset_imports[""] = 20


def _dtype(model: ir.Model) -> None:
    model.graph.inputs[0].dtype = ir.DataType.UINT8


def _ir_version(model: ir.Model) -> None:
    model.ir_version = IR_VERSION + 1


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (_ir_version, "IR version 11, not 10"),
        (_opset, "function ds4.probe imports `` 20"),
        (_standard_node, "main graph: abs computes outside ds4: Abs"),
        (_same_node_names, "main graph: two nodes are called twice"),
        (_same_value_names, "main graph: two values are called twice"),
        (_turned_round, "main graph: layers.1/half reads layers.0/half:y before it is made"),
        (_no_layer_function, "layers.0/half: the model has no function ds4.layers.half"),
        (_no_body, "norm/probe: the model has no function ds4.probe"),
        (_computing_layer, "ds4.layers.half holds Abs"),
        (_custom_body, "ds4.probe holds Gelu"),
        (_too_few_inputs, "layers.0/half: half has 2 inputs and 1 outputs"),
        (_dtype, "input x is UINT8"),
    ],
)
def test_each_invariant(damage: Callable[[ir.Model], None], problem: str) -> None:
    model = LAYERS()
    assert graph_problems(model) == []
    damage(model)
    assert problem in graph_problems(model)


def test_the_refusal_names_the_first_problems_and_counts_the_rest() -> None:
    model = LAYERS()
    for name in [v.name for v in model.graph.inputs]:
        next(v for v in model.graph.inputs if v.name == name).dtype = ir.DataType.UINT8
    _same_node_names(model)
    with pytest.raises(ExportError) as caught:
        check_graph(model, "after a pass")
    text = str(caught.value)
    assert text.startswith("the graph `test` breaks 4 of its invariants\n  where:    after a pass")
    assert "input x is UINT8; " in text
    check_graph(LAYERS())


def test_constants_are_those_of_the_assembly() -> None:
    assert (IR_VERSION, LAYER_DOMAIN) == (assemble.IR_VERSION, assemble.LAYER_DOMAIN)
    assert (OPSET, DOMAIN) == (_body.OPSET, OPS_DOMAIN)


def _ring(rows: T, ring: T, slots: T, positions: T, num_new: T) -> tuple[T, T]:
    history, ring_out, _ = history_and_append(rows, ring, slots, positions, num_new)
    return history.sum(1), ring_out


def _unordered_ring(rows: T, ring: T, slots: T, positions: T, num_new: T) -> tuple[T, T]:
    """The same, but the update is the chunk itself, not a part of the history."""
    at = positions.unsqueeze(1) + rows.body.arange(rows.size(1))
    old = gather_pool(ring, slots, at)
    return old.sum(1), scatter_pool(ring, slots, at, rows)


def test_a_ring_is_read_before_it_is_written() -> None:
    assert graph_problems(probe(_ring, RING)) == []


def test_a_write_that_does_not_wait_for_the_read_is_found() -> None:
    assert graph_problems(probe(_unordered_ring, RING)) == [
        "ds4.probe: GatherND may read ring after it is written"
    ]


def test_a_read_in_a_loop_is_found() -> None:
    def body(rows: T, ring: T, slots: T, positions: T, num_new: T) -> tuple[T, T]:
        b = rows.body
        at = positions.unsqueeze(1) + b.arange(rows.size(1))

        def step(_: T, carried: tuple[T, ...]) -> tuple[tuple[T, ...], tuple[T, ...]]:
            return (carried[0] + gather_pool(ring, slots, at),), ()

        (total,) = b.loop(b.ints(2), (rows,), step)
        return total, scatter_pool(ring, slots, at, rows)

    assert graph_problems(probe(body, RING)) == [
        "ds4.probe: Loop may read ring after it is written"
    ]


def _state_model(*, out: str, readers: int) -> ir.Model:
    state = value("state.layers.0.window", ("S", "R", 8))
    nodes = [ir.Node(DOMAIN, "attend", [state], name=f"attend.{n}") for n in range(readers)]
    for n, node in enumerate(nodes):
        node.outputs[0].name = out if n == 0 else f"y.{n}"
        node.outputs[0].type, node.outputs[0].shape = state.type, state.shape
    return model_of(nodes, [])


def test_state_comes_out_as_it_went_in() -> None:
    name = "state.layers.0.window"
    assert graph_problems(_state_model(out=f"{name}_out", readers=1)) == []
    assert graph_problems(_state_model(out="y", readers=1)) == [
        f"{name} goes in and does not come out"
    ]
    assert graph_problems(_state_model(out="state.layers.9.window_out", readers=1)) == [
        f"{name} goes in and does not come out",
        "state.layers.9.window_out comes out and does not go in",
    ]
    assert graph_problems(_state_model(out=f"{name}_out", readers=2)) == [
        f"{name} is read by 2 ops, not by the one that writes it"
    ]
    model = _state_model(out=f"{name}_out", readers=1)
    model.graph.outputs[0].type = ir.TensorType(ir.DataType.BFLOAT16)
    (problem,) = graph_problems(model)
    assert problem.startswith(f"{name} is FLOAT [S,R,8] and comes out as BFLOAT16")


def test_reading_a_shape_is_no_read() -> None:
    def body(rows: T, ring: T, slots: T, positions: T, num_new: T) -> tuple[T, T]:
        at = positions.unsqueeze(1) + rows.body.arange(rows.size(1))
        return ring.size_all().cast(FLOAT), scatter_pool(ring, slots, at, rows)

    assert graph_problems(probe(body, RING)) == []
    assert isinstance(RING, Call)
