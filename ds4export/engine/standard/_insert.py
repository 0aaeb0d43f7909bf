"""What the rewrites of bodies share: a walk that knows each node's graph, and nodes put before another."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import numpy as np
import onnx_ir as ir

from ds4export.passes._bodies import subgraphs

Scope = ir.Graph | ir.Function
_numbers = count()


def nodes_with_scopes(scope: Scope) -> Iterator[tuple[Scope, ir.Node]]:
    """Every node with the graph that it stands in, those inside a loop right after the loop."""
    for node in list(scope):
        yield scope, node
        for graph in subgraphs(node):
            yield from nodes_with_scopes(graph)


class Inserter:
    """Appends nodes before one of a graph; nodes and values get names of their own, in loops too."""

    def __init__(self, scope: Scope, before: ir.Node) -> None:
        self.scope, self.before = scope, before

    def op(self, op_type: str, *inputs: ir.Value, **attributes: int) -> ir.Value:
        listed = [ir.AttrInt64(k, v) for k, v in attributes.items()]
        return self._insert(ir.Node("", op_type, inputs, listed))

    def const(self, *numbers: int) -> ir.Value:
        """An INT64 vector."""
        return self.constant(np.array(numbers, np.int64))

    def constant(self, array: np.ndarray) -> ir.Value:
        return self._insert(ir.Node("", "Constant", [], [_tensor("value", array)]))

    def counted(self, length: ir.Value) -> ir.Value:
        """0 .. length - 1 of a vector of one element."""
        scalars = (
            self.op("Squeeze", v, self.const(0)) for v in (self.const(0), length, self.const(1))
        )
        return self.op("Range", *scalars)

    def filled(self, number: float, shape: ir.Value) -> ir.Value:
        """A float32 tensor of one number."""
        value = _tensor("value", np.array([number], np.float32))
        return self._insert(ir.Node("", "ConstantOfShape", [shape], [value]))

    def _insert(self, node: ir.Node) -> ir.Value:
        self.scope.insert_before(self.before, node)
        value = node.outputs[0]
        node.name = value.name = f"standard_{next(_numbers)}"
        return value


def _tensor(name: str, array: np.ndarray) -> ir.Attr:
    return ir.AttrTensor(name, ir.tensor(array))
