"""The text of a graph: everything that matters is in it, and nothing that varies from run to run."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ds4export.graph.text import function_text, graph_lines, model_text
from ds4export.ops._body import FLOAT, Body, BodyOptions, T
from tests.passes.build import call, probe, value

EXPECTED = """\
graph test  ir 10  opset 21  ds4 1  ds4.layers 1
  in   x.0: FLOAT[B, 4]
  out  out.0.0: ?[?]
  probe.0: out.0.0 = ds4.probe(x.0)

function ds4.probe(x) -> (y)
  constant = Constant<value=FLOAT[9]>()
  abs = Abs(x)
  abs.2 = Abs(constant)
  reducesum = ReduceSum<keepdims=1>(abs.2, [0])
  mul = Mul(abs, reducesum)
  squeeze = Squeeze([3], [0])
  loop = Loop(squeeze, True, mul)
    each i, keep, carried:
      add = Add(carried, 0.1)
      identity = Identity(keep)
      identity.2 = Identity(add)
      -> identity, identity.2
  y = Identity(loop)
"""


def body(x: T) -> T:
    b = x.body
    table = b.const(np.arange(9, dtype=np.float32))
    x = x.unary("Abs") * table.unary("Abs").sum(0)

    def step(_: T, carried: tuple[T, ...]) -> tuple[tuple[T, ...], tuple[T, ...]]:
        return (carried[0] + 0.1,), ()

    return b.loop(b.ints(3), (x,), step)[0]


def test_a_whole_model() -> None:
    assert model_text(probe(body, call(x=("B", 4)))) == EXPECTED


def test_numbers_of_a_builder_do_not_show() -> None:
    def late(x: T) -> T:
        for _ in range(5):
            x.body.fresh("unused")
        return body(x)

    assert model_text(probe(late, call(x=("B", 4)))) == model_text(probe(body, call(x=("B", 4))))


def test_it_survives_the_file(tmp_path) -> None:
    model = probe(lambda x: x * 1e-6, call(x=("B", 4)))
    ir.save(model, tmp_path / "model.onnx")
    assert model_text(ir.load(tmp_path / "model.onnx")) == model_text(model)


def test_what_differs_shows() -> None:
    texts = {
        model_text(probe(make, call(x=dims)))
        for make in (lambda x: x * 2.0, lambda x: x * 3.0, lambda x: x + 2.0)
        for dims in (("B", 4), ("B", 5))
    }
    assert len(texts) == 6


def test_missing_inputs_initializers_and_attributes() -> None:
    x = value("x", ("B",))
    rows = ir.Value(name="rows", const_value=ir.tensor(np.arange(3)))
    rows.type, rows.shape = ir.TensorType(ir.DataType.INT64), ir.Shape([3])
    attributes = [
        ir.AttrFloat32("eps", 1e-6),
        ir.AttrString("format", "fp4"),
        ir.AttrInt64s("axes", [0, 1]),
    ]
    node = ir.Node("ds4", "moe", [x, None, rows], attributes, name="ffn/moe")
    node.outputs[0].name = "ffn/moe:y"
    graph = ir.Graph([x], node.outputs, nodes=[node], initializers=[rows], opset_imports={"": 21})
    assert list(graph_lines(graph)) == [
        "  in   x: FLOAT[B]",
        "  out  ffn/moe:y: ?[?]",
        "  have rows: INT64[3]",
        "  ffn/moe: ffn/moe:y = ds4.moe<eps=1e-06, format=fp4, axes=[0, 1]>(x, -, rows)",
    ]


def test_floats_are_the_shortest_text_of_float32() -> None:
    b = Body(BodyOptions(official=False))
    x = b.input("x", FLOAT)
    y = x * 0.1 + 1e-4
    graph = ir.Graph([x.value], [y.value], nodes=b.nodes, name="f", opset_imports={"": 21})
    text = function_text(ir.Function("ds4", "f", graph=graph, attributes=[]))
    assert "Mul(x, 0.1)" in text
    assert "1e-04)" in text
