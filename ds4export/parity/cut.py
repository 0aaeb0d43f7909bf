"""Models cut from an artefact: one node with its body, one layer function, or the flat graph with taps.

Owns the cutting; every function in a cut is the artefact's own. Refuses nothing: what is cut is what is there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import onnx_ir as ir

from ds4export.graph.assemble import IR_VERSION
from ds4export.ops._body import OPSET
from ds4export.parity.subject import GraphParts

Identifier = tuple[str, str, str]


def cut_node(parts: GraphParts, path: str, *, flat: bool) -> ir.Model:
    """A model of one node of the flat graph, or of one call of a layer function (`flat=False`).

    Inputs and outputs keep order and names; their dimensions are free, so that one model serves all nodes of a kind.
    """
    source = parts.flat if flat else parts.model
    node = next(n for n in source.graph if n.name == path)
    inputs = [_free(v, f"input_{i}") for i, v in enumerate(node.inputs) if v is not None]
    made = ir.Node(
        node.domain,
        node.op_type,
        inputs,
        list(node.attributes.values()),
        num_outputs=len(node.outputs),
        name=path,
    )
    for i, (new, old) in enumerate(zip(made.outputs, node.outputs, strict=True)):
        new.name, new.type, new.shape = f"output_{i}", old.type, _any_shape(old)
    return _model(inputs, list(made.outputs), [made], source, _used(source, [node]))


def with_taps(parts: GraphParts, taps: Sequence[str]) -> ir.Model:
    """The flat graph with the named values as its outputs."""
    model = parts.flat.clone()
    values = {v.name: v for node in model.graph for v in node.outputs}
    model.graph.outputs.clear()
    model.graph.outputs.extend(values[name] for name in taps)
    return model


def _free(value: ir.Value, name: str) -> ir.Value:
    return ir.Value(name=name, type=value.type, shape=_any_shape(value))


def _any_shape(value: ir.Value) -> ir.Shape | None:
    return None if value.shape is None else ir.Shape([None] * len(value.shape))


def _model(
    inputs: list[ir.Value],
    outputs: list[ir.Value],
    nodes: list[ir.Node],
    source: ir.Model,
    functions: list[ir.Function],
) -> ir.Model:
    imports = {"": OPSET} | {f.domain: 1 for f in functions} | {nodes[0].domain: 1}
    graph = ir.Graph(inputs, outputs, nodes=nodes, opset_imports=imports, name="cut")
    version = source.ir_version or IR_VERSION
    return ir.Model(graph, ir_version=version, functions=functions)


def _used(model: ir.Model, nodes: Sequence[ir.Node]) -> list[ir.Function]:
    """The functions that nodes call, and those that these call."""
    found: dict[Identifier, ir.Function] = {}
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        identifier = node.op_identifier()
        if identifier in model.functions and identifier not in found:
            found[identifier] = model.functions[identifier]
            waiting.extend(_all_nodes(found[identifier]))
    return list(found.values())


def _all_nodes(graph: ir.Function | ir.Graph) -> Iterator[ir.Node]:
    for node in graph:
        yield node
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH:
                yield from _all_nodes(attribute.as_graph())
