"""One pass: Identity nodes go."""

from __future__ import annotations

import onnx_ir as ir

from ds4export.passes._bodies import bodies, replace_uses, scopes, sweep
from ds4export.passes._run import Tally, a_pass


@a_pass(needs=("bodies",), promises=("no identities",))
def drop_identities(model: ir.Model, tally: Tally) -> ir.Model:
    """Let the producer of an Identity's input produce its output.

    Before   a = Cast(x) ; y = Identity(a)          y is an output of the body or of a loop
    After    y = Cast(x)
    Before   each i, keep: ... -> Identity(keep), y
    After    each i, keep: ... -> keep, y
    Why      in a loop it is a dispatch an iteration, which ONNX Runtime keeps
    Refuses  an output that is an input of the body, or comes from around the loop, or is returned twice
    Needs    bodies: there is something to drop in
    Promises no identities: but those that pass an input on; exact
    """
    for body in bodies(model):
        for scope in list(scopes(body)):
            for node in [n for n in scope if n.op_type == "Identity"]:
                _drop(node, scope, body.name, tally)
        sweep(body)
    return model


def _drop(node: ir.Node, scope: ir.Function | ir.Graph, body: str, tally: Tally) -> None:
    source, out = node.inputs[0], node.outputs[0]
    assert source is not None, "Identity of nothing"
    if out.is_graph_output():
        if source.is_graph_output() or not _may_leave(source, scope, node):
            tally.refused("the output has no value of its own in this scope", f"{body}.{out.name}")
            return
        scope.outputs[[v is out for v in scope.outputs].index(True)] = source
        if source.producer() is not None:
            source.name, source.type, source.shape = out.name, out.type, out.shape
    replace_uses(out, source)
    scope.remove(node, safe=True)
    tally.rewrote()


def _may_leave(value: ir.Value, scope: ir.Function | ir.Graph, node: ir.Node) -> bool:
    """Whether the scope may return the value itself: it is made here, or handed in by a loop."""
    producer = value.producer()
    if producer is not None:
        return producer.graph is node.graph
    return isinstance(scope, ir.Graph) and any(value is v for v in scope.inputs)
