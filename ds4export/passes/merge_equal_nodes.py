"""One pass: of nodes that compute the same, the first stays."""

from __future__ import annotations

import onnx_ir as ir

from ds4export.passes._bodies import (
    array_key,
    bodies,
    constant_array,
    replace_uses,
    subgraphs,
    sweep,
)
from ds4export.passes._run import Tally, a_pass

Key = tuple[object, ...]


@a_pass(needs=("bodies",), promises=("no equal nodes",))
def merge_equal_nodes(model: ir.Model, tally: Tally) -> ir.Model:
    """Let the consumers of a node read an earlier node with the same operator, inputs and attributes.

    Before   a = Unsqueeze(t, 1) ; ... ; b = Unsqueeze(t, 1)
    After    a = Unsqueeze(t, 1)
    Why      bodies are made of pieces that each ask for what they need; ONNX Runtime would merge it in every layer
    Refuses  loops; a node inside a loop is merged into one before the loop, never the other way round
    Needs    bodies: there is something to merge in
    Promises no equal nodes: within a scope and those around it; exact
    """
    for body in bodies(model):
        _merge(body, {}, tally)
        sweep(body)
    return model


def _merge(scope: ir.Function | ir.Graph, around: dict[Key, ir.Node], tally: Tally) -> None:
    known = dict(around)
    for node in list(scope):
        inner = subgraphs(node)
        for graph in inner:
            _merge(graph, known, tally)
        if inner:
            continue
        first = known.setdefault(_key(node), node)
        if first is not node and any(out.uses() for out in node.outputs):
            for old, new in zip(node.outputs, first.outputs, strict=True):
                replace_uses(old, new)
            tally.rewrote()


def _key(node: ir.Node) -> Key:
    array = constant_array(node.outputs[0])
    if array is not None:
        return ("Constant", *array_key(array))
    attributes = sorted((a.name, str(a.value)) for a in node.attributes.values())
    return (node.domain, node.op_type, *(id(v) for v in node.inputs), *attributes)
