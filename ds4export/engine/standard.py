"""An artefact's graph in standard ONNX operators alone: the bodies kept and inlined, no ds4 op left, no plugin needed.

A second opinion on the lowering: TensorRT's parser checks types and shapes of every body. Not for use: the weights
would be dequantised whole. The parser of TensorRT for RTX refuses two things, both in `moe`: `NonZero`, whose shape
hangs on values, and `ScatterND` that adds; they find the tokens of an expert and bring them home. Here every token goes
through every expert of the run, and a weight of zero takes out what was not chosen. Its builder goes less far: it
refuses the float8 casts of official numerics, and did not finish `hc_pre` in two minutes.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from ds4export.errors import ExportError
from ds4export.onnx_names import DOMAIN

INT64, FLOAT = ir.DataType.INT64, ir.DataType.FLOAT


def standard_graph(model: ir.Model) -> ir.Model:
    """The graph with all functions inlined and `moe` made dense; consumes the model.

    onnx.inliner is of no use: it renames a loop's output that is also its input, and the parser finds no such value.

    Raises:
        ExportError: something of ds4 has no body.
    """
    for function in model.functions.values():
        if (function.domain, function.name) == (DOMAIN, "moe"):
            _make_dense(function)
    InlinePass()(model)
    left = sorted({n.op_type for n in model.graph if n.domain not in ("", "ai.onnx")})
    if left:
        raise ExportError(
            "an op has no body of standard operators",
            found=", ".join(left),
            expected="the graph as exported, with its functions",
        )
    return model


def _make_dense(function: ir.Function) -> None:
    """All experts instead of the used ones, all (token, place) instead of the chosen ones, weights masked."""
    for graph, node in _all_nodes(function.graph):
        if node.op_type == "NonZero":
            mask, found = node.inputs[0], node.outputs[0]
            assert mask is not None, "NonZero has no input"
            inside = graph is not function.graph  # the loop looks for pairs, before it for experts
            made = _all_pairs(graph, node, mask) if inside else _all_experts(graph, node, function)
            if inside:
                _mask_weights(graph, mask, found)
                _add_without_scatter(graph, mask)
            found.replace_all_uses_with(made)
            graph.remove(node, safe=True)


def _all_nodes(graph: ir.Graph) -> Iterator[tuple[ir.Graph, ir.Node]]:
    for node in list(graph):
        yield graph, node
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH:
                yield from _all_nodes(attribute.as_graph())


class _Inserter:
    """Appends nodes before one of a graph."""

    def __init__(self, graph: ir.Graph, before: ir.Node) -> None:
        self.graph, self.before = graph, before

    def op(self, op_type: str, *inputs: ir.Value, **attributes: int) -> ir.Value:
        listed = [ir.AttrInt64(k, v) for k, v in attributes.items()]
        return self._insert(ir.Node("", op_type, inputs, listed))

    def const(self, *numbers: int) -> ir.Value:
        array = np.array(numbers, np.int64)
        return self._insert(ir.Node("", "Constant", [], [ir.AttrTensor("value", ir.tensor(array))]))

    def _insert(self, node: ir.Node) -> ir.Value:
        self.graph.insert_before(self.before, node)
        value = node.outputs[0]
        value.name = f"dense_{id(value)}"
        return value


def _numbers(put: _Inserter, size: ir.Value) -> ir.Value:
    """0 .. size - 1 of a scalar, [1, size]."""
    zero, one = (put.op("Squeeze", put.const(n), put.const(0)) for n in (0, 1))
    return put.op("Unsqueeze", put.op("Range", zero, size, one), put.const(0))


def _all_experts(graph: ir.Graph, node: ir.Node, function: ir.Function) -> ir.Value:
    rows = next(v for v in function.inputs if v.name == "expert_rows")
    put = _Inserter(graph, node)
    return _numbers(put, put.op("Size", rows))


def _all_pairs(graph: ir.Graph, node: ir.Node, mask: ir.Value) -> ir.Value:
    """[2, N]: row and column of every element of a matrix."""
    put = _Inserter(graph, node)
    flat, columns = _numbers(put, put.op("Size", mask)), put.op("Shape", mask, start=1, end=2)
    return put.op("Concat", put.op("Div", flat, columns), put.op("Mod", flat, columns), axis=0)


def _mask_weights(graph: ir.Graph, mask: ir.Value, found: ir.Value) -> None:
    """Whatever is gathered at the coordinates is multiplied by the mask there."""
    for transposed in found.consumers():
        for node in transposed.outputs[0].consumers():
            if node.op_type != "GatherND":
                continue
            following = next(iter(node.outputs[0].consumers()))
            put = _Inserter(graph, following)
            flat = put.op("Reshape", put.op("Cast", mask, to=FLOAT.value), put.const(-1))
            made = put.op("Mul", node.outputs[0], flat)
            for user, index in list(node.outputs[0].uses()):
                if user is not made.producer():
                    user.replace_input_with(index, made)


def _add_without_scatter(graph: ir.Graph, mask: ir.Value) -> None:
    """The rows of a token lie behind each other: they are added up, and to what is carried."""
    for node in [n for n in graph if n.op_type == "ScatterND"]:
        carried, _, rows = node.inputs
        assert carried is not None, "ScatterND has no data"
        assert rows is not None, "ScatterND has no updates"
        put = _Inserter(graph, node)
        shape = put.op("Concat", put.op("Shape", mask), put.const(-1), axis=0)
        summed = put.op("ReduceSum", put.op("Reshape", rows, shape), put.const(1), keepdims=0)
        made, old = put.op("Add", carried, summed), node.outputs[0]
        made.type, made.shape = old.type, old.shape
        old.replace_all_uses_with(made, replace_graph_outputs=True)
        graph.remove(node, safe=True)
