"""The parts of a model that passes walk over, and the few edits they share.

Owns walks over bodies and their loops, replacement of a value. Refuses anything that
decides: what to rewrite stands in the passes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import count

import numpy as np
import onnx_ir as ir

from ds4export.onnx_names import DOMAIN as DOMAIN
from ds4export.onnx_names import LAYER_DOMAIN as LAYER_DOMAIN


def bodies(model: ir.Model) -> list[ir.Function]:
    """The functions that are bodies of ds4 ops."""
    return [f for f in model.functions.values() if f.domain == DOMAIN]


def subgraphs(node: ir.Node) -> list[ir.Graph]:
    """The graphs a node carries: a loop's body."""
    return [a.as_graph() for a in node.attributes.values() if a.type == ir.AttributeType.GRAPH]


def all_nodes(nodes: Iterable[ir.Node]) -> Iterator[ir.Node]:
    """Every node of a graph or function, those inside loops right after the loop."""
    for node in nodes:
        yield node
        for graph in subgraphs(node):
            yield from all_nodes(graph)


def scopes(body: ir.Function) -> Iterator[ir.Function | ir.Graph]:
    """The body itself, then the graphs of its loops; the values of an outer scope are visible in an inner one."""
    yield body
    for node in all_nodes(body):
        yield from subgraphs(node)


def replace_uses(old: ir.Value, new: ir.Value) -> None:
    """Let every consumer of `old` read `new`; the outputs of graphs and functions stay as they are."""
    for use in tuple(old.uses()):
        use.node.replace_input_with(use.idx, new)


def replace_node(old: ir.Node, new: ir.Node) -> None:
    """Put a node with as many outputs in the place of another, under the same value names."""
    scope = old.graph
    assert scope is not None, f"{old.op_type} stands in no graph"
    scope.insert_before(old, new)
    for before, after in zip(old.outputs, new.outputs, strict=True):
        after.name, after.type, after.shape = before.name, before.type, before.shape
        ir.convenience.replace_all_uses_with(before, after, replace_graph_outputs=True)
    scope.remove(old, safe=True)


def constant_array(value: ir.Value | None) -> np.ndarray | None:
    """The array of a Constant node's output, else None."""
    node = value.producer() if value is not None else None
    if node is None or node.op_type != "Constant" or "value" not in node.attributes:
        return None
    return node.attributes["value"].as_tensor().numpy()


def sweep(body: ir.Function) -> None:
    """Remove nodes that nobody reads, from the last to the first."""
    for scope in reversed(list(scopes(body))):
        for node in reversed(list(scope)):
            if not any(out.uses() or out.is_graph_output() for out in node.outputs):
                scope.remove(node, safe=True)


class Constants:
    """The Constant nodes of a body: one per array, all at the top as soon as they are asked for."""

    def __init__(self, body: ir.Function) -> None:
        self._body = body
        self._names = {out.name for node in all_nodes(body) for out in node.outputs}
        self._known: dict[tuple[str, tuple[int, ...], bytes], ir.Node] = {}
        for node in body:
            array = constant_array(node.outputs[0])
            if array is not None:
                self._known.setdefault(array_key(array), node)

    def value(self, array: np.ndarray) -> ir.Value:
        """The output of a Constant node that stands before every node but Constants."""
        key = array_key(array)
        if key in self._known:
            self._body.remove(self._known[key])
        else:
            self._known[key] = ir.Node(
                "", "Constant", [], [ir.AttrTensor("value", ir.tensor(array))]
            )
            self._known[key].outputs[0].name = self._fresh()
        self._body.insert_before(self._body[0], self._known[key])
        return self._known[key].outputs[0]

    def _fresh(self) -> str:
        name = next(n for i in count(1) if (n := f"size_{i}") not in self._names)
        self._names.add(name)
        return name


def array_key(array: np.ndarray) -> tuple[str, tuple[int, ...], bytes]:
    """Equal for equal arrays of equal dtype and shape."""
    return str(array.dtype), array.shape, array.tobytes()
