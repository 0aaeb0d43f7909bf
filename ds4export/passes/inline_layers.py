"""One pass: layer functions become nodes of the main graph."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from ds4export.passes._bodies import LAYER_DOMAIN
from ds4export.passes._run import Tally, a_pass


@a_pass(promises=("flat",))
def inline_layers(model: ir.Model, tally: Tally) -> ir.Model:
    """Replace every call of a layer function by the function's nodes.

    Before   layers.7/attn: x -> ds4.layers.attn_csa -> y
    After    layers.7/attn/hc_pre: x -> ds4.hc_pre -> a ; ... ; layers.7/attn/hc_post: ... -> ds4.hc_post -> y
    Why      inside a function TensorRT prefers a body to the plugin of the same name; a verifier names nodes by path
    Refuses  nothing: every call of a layer function goes
    Needs    nothing
    Promises flat: no node and no function of ds4.layers; a node's name is its path in the model
    """
    for node in list(model.graph):
        if node.domain != LAYER_DOMAIN:
            continue
        _inline(model.graph, node, model.functions[node.op_identifier()])
        tally.rewrote()
    for identifier in [
        f.identifier() for f in model.functions.values() if f.domain == LAYER_DOMAIN
    ]:
        del model.functions[identifier]
    model.graph.opset_imports.pop(LAYER_DOMAIN, None)
    return model


def _inline(graph: ir.Graph, call: ir.Node, function: ir.Function) -> None:
    mapped = dict(zip(function.inputs, call.inputs, strict=True))
    made = [_copy(node, call.name or "", mapped) for node in function]
    graph.insert_before(call, made)
    for old, inner in zip(call.outputs, function.outputs, strict=True):
        _take_over(graph, old, mapped[inner])
    graph.remove(call, safe=True)


def _copy(node: ir.Node, path: str, mapped: dict[ir.Value, ir.Value | None]) -> ir.Node:
    """The node with its inputs replaced; maps its outputs to the copy's."""
    made = ir.Node(
        node.domain,
        node.op_type,
        [mapped[v] if v is not None else None for v in node.inputs],
        list(node.attributes.values()),
        num_outputs=len(node.outputs),
        name=f"{path}/{node.name}",
    )
    for old, new in zip(node.outputs, made.outputs, strict=True):
        new.name, new.type, new.shape = f"{path}/{old.name}", old.type, old.shape
        mapped[old] = new
    return made


def _take_over(graph: ir.Graph, old: ir.Value, new: ir.Value | None) -> None:
    """`new` in place of `old`, under the name of `old` and with its shape, which knows this layer's dimensions."""
    assert new is not None, "a layer function returns one of its inputs, which the call left out"
    outputs: Sequence[ir.Value] = graph.outputs
    new.name, new.shape = old.name, old.shape
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    assert all(v is not old for v in outputs), f"{old.name} is still an output"
