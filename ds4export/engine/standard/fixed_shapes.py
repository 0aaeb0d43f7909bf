"""A flat graph at fixed shapes: sizes become numbers, loops are written out.

Owns what is possible once every input has one shape. Refuses a loop whose number of iterations is still unknown then.
The builder of TensorRT for RTX fails on the loops of bodies; at the shapes of a small step most run once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import count

import numpy as np
import onnx_ir as ir

from ds4export.engine.standard._insert import Inserter
from ds4export.errors import ExportError
from ds4export.passes._bodies import (
    Constants,
    all_nodes,
    constant_array,
    replace_uses,
    subgraphs,
    sweep,
)
from ds4export.passes._known import BodyFacts, interpret
from ds4export.passes._size import Size, size


def fix_shapes(model: ir.Model, shapes: Mapping[str, Sequence[int]]) -> None:
    """Make the graph that of one step: inputs named in `shapes` get these; the model has no functions.

    Raises:
        ExportError: an input keeps a symbolic dimension, or a loop an unknown number of iterations.
    """
    _fix_inputs(model.graph, shapes)
    _forget_shapes(model.graph)
    _write_initializers(model.graph)
    body = ir.Function("", "step", graph=model.graph, attributes=())
    turns = count()
    while loops := _innermost_loops(body):
        _fold(body)
        ready = [n for n in loops if constant_array(n.inputs[0]) is not None]
        if not ready:
            raise _endless(loops[0])
        for loop in ready:
            _write_out(loop, turns)
    _fold(body)


def _innermost_loops(body: ir.Function) -> list[ir.Node]:
    """What is known behind a loop may hang on what is inside."""
    loops = [n for n in all_nodes(body) if n.op_type == "Loop"]
    outer = [n for n in loops if any(m.op_type == "Loop" for g in subgraphs(n) for m in g)]
    return [n for n in loops if n not in outer]


def _endless(loop: ir.Node) -> ExportError:
    return ExportError(
        "a loop's number of iterations hangs on values",
        where=f"loop `{loop.outputs[0].name}`",
        found=str(loop.inputs[0]),
        expected="a number that follows from the shapes of the inputs",
    )


def _fix_inputs(graph: ir.Graph, shapes: Mapping[str, Sequence[int]]) -> None:
    for value in graph.inputs:
        if value.name is not None and value.name in shapes:
            value.shape = ir.Shape(shapes[value.name])
        if value.shape is None or not value.shape.is_static():
            raise ExportError(
                f"the input `{value.name}` has no fixed shape",
                found=str(value.shape),
                expected="a number for every dimension",
            )


def _forget_shapes(graph: ir.Graph) -> None:
    """Declared shapes name dimensions that are numbers now."""
    for node in all_nodes(graph):
        for out in node.outputs:
            out.shape = None


def _write_initializers(graph: ir.Graph) -> None:
    """Tables of the graph become Constant nodes, whose shapes are followed."""
    put = Inserter(graph, graph[0])
    for name, value in list(graph.initializers.items()):
        assert value.const_value is not None, f"{name} has no values"
        del graph.initializers[name]
        replace_uses(value, put.constant(value.const_value.numpy()))


def _fold(body: ir.Function) -> None:
    """Every integer that is known before the step becomes a constant."""
    facts = BodyFacts(body, (interpret(body, tuple(map(_dims, body.inputs))),))
    constants = Constants(body)
    for out in (o for n in list(all_nodes(body)) if _is_folded(n) for o in n.outputs):
        numbers = facts.numbers(out)
        if numbers is not None and out.uses():
            replace_uses(out, constants.value(numbers))
    sweep(body)


def _is_folded(node: ir.Node) -> bool:
    return node.op_type not in ("Constant", "Loop")


def _dims(value: ir.Value) -> tuple[Size, ...]:
    assert value.shape is not None, f"{value.name} has no shape"
    return tuple(size(d) for d in value.shape if isinstance(d, int))


def _write_out(loop: ir.Node, turns: Iterator[int]) -> None:
    """The loop's body as often as it runs, in place of the loop; stacked outputs are joined."""
    body, scope = loop.attributes["body"].as_graph(), loop.graph
    iterations = constant_array(loop.inputs[0])
    assert scope is not None, "the loop stands in no graph"
    assert iterations is not None, "the loop's number of iterations is not known"
    carried = [v for v in loop.inputs[2:] if v is not None]
    stacked: list[list[ir.Value]] = [[] for _ in loop.outputs[len(carried) :]]
    put = Inserter(scope, loop)
    for i in range(int(iterations)):
        results = _turn(put, body, i, carried, next(turns))
        carried, rows = results[: len(carried)], results[len(carried) :]
        for parts, row in zip(stacked, rows, strict=True):
            parts.append(put.op("Unsqueeze", row, put.const(0)))
    joined = [put.op("Concat", *parts, axis=0) for parts in stacked]
    for old, new in zip(loop.outputs, (*carried, *joined), strict=True):
        old.replace_all_uses_with(new, replace_graph_outputs=True)
    scope.remove(loop, safe=True)


def _turn(
    put: Inserter, body: ir.Graph, number: int, carried: list[ir.Value], turn: int
) -> list[ir.Value]:
    """One run of a loop's body before the loop, its values under names of their own: what comes out of it."""
    made = body.clone(allow_outer_scope_values=True)
    given = (put.constant(np.array(number)), put.constant(np.array(True)), *carried)
    for inner, outer in zip(made.inputs, given, strict=True):
        inner.replace_all_uses_with(outer, replace_graph_outputs=True)
    results = list(made.outputs)[1:]
    made.outputs.clear()
    _move(list(made), made, put, turn)
    return results


def _move(nodes: list[ir.Node], source: ir.Graph, put: Inserter, turn: int) -> None:
    for node in nodes:
        source.remove(node)
        node.name = f"{node.name}_turn_{turn}"
        for out in node.outputs:
            out.name = f"{out.name}_turn_{turn}"
        put.scope.insert_before(put.before, node)
