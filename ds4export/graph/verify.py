"""Invariants of every graph between capture and the file: checked before the first pass and after each.

    file        IR 10, opset 21 in the graph and in every function, ds4 1, ds4.layers 1
    main graph  ds4 and ds4.layers nodes only; node and value names are there and unique; values come before their use
    functions   every call finds its function with as many inputs and outputs; ds4 bodies: all or none
    layers      ds4 nodes only
    bodies      standard operators only; a state tensor is read before it is written (below)
    inputs      FLOAT, BFLOAT16, INT64 or INT8
    state       state.X comes out as state.X_out of its dtype and shape, and one op reads it

A body scatters into a state tensor that the runtime may have bound to the output as well, so the write happens in
place. What reads the old tensor must therefore be something the write depends on: only then no runtime can write
first. Reading its shape is always safe.

Owns the list. Refuses to repair: a broken invariant is a bug of ours, or of whoever edited the file.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import onnx_ir as ir

from ds4export.errors import ExportError
from ds4export.onnx_names import DOMAIN as DOMAIN
from ds4export.onnx_names import IR_VERSION as IR_VERSION
from ds4export.onnx_names import LAYER_DOMAIN as LAYER_DOMAIN
from ds4export.onnx_names import OPSET as OPSET

VERSIONS = {"": OPSET, DOMAIN: 1, LAYER_DOMAIN: 1}
INPUT_DTYPES = (
    ir.DataType.FLOAT,
    ir.DataType.BFLOAT16,
    ir.DataType.INT64,
    ir.DataType.INT8,
)
STATE = "state."
MAX_SHOWN = 8


def check_graph(model: ir.Model, when: str = "") -> None:
    """Refuse a model that breaks an invariant.

    Raises:
        ExportError: with the first few problems.
    """
    problems = graph_problems(model)
    if problems:
        more = f" and {len(problems) - MAX_SHOWN} more" if len(problems) > MAX_SHOWN else ""
        raise ExportError(
            f"the graph `{model.graph.name}` breaks {len(problems)} of its invariants",
            where=when,
            found="; ".join(problems[:MAX_SHOWN]) + more,
            expected="none of them, see ds4export/graph/verify.py",
        )


def graph_problems(model: ir.Model) -> list[str]:
    """Every broken invariant as a sentence; none for a sound model."""
    return [
        *_versions(model),
        *_main_graph(model),
        *_inputs(model),
        *_state(model),
        *_calls(model),
        *_functions(model),
    ]


def _versions(model: ir.Model) -> Iterator[str]:
    if model.ir_version != IR_VERSION:
        yield f"IR version {model.ir_version}, not {IR_VERSION}"
    scopes = [("the graph", model.graph.opset_imports)]
    scopes += [(f"function {f.domain}.{f.name}", f.opset_imports) for f in model.functions.values()]
    for name, imports in scopes:
        if "" not in imports:
            yield f"{name} imports no standard operators"
        for domain, version in imports.items():
            if VERSIONS.get(domain) != version:
                yield f"{name} imports `{domain}` {version}"


def _main_graph(model: ir.Model) -> Iterator[str]:
    graph = model.graph
    for node in graph:
        if node.domain not in (DOMAIN, LAYER_DOMAIN):
            yield f"main graph: {node.name or node.op_type} computes outside ds4: {node.op_type}"
    values = [*graph.inputs, *graph.initializers.values(), *(v for n in graph for v in n.outputs)]
    yield from _unique("node", [n.name for n in graph])
    yield from _unique("value", [v.name for v in values])
    yield from _order("main graph", graph, values[: len(graph.inputs) + len(graph.initializers)])


def _unique(kind: str, names: list[str | None]) -> Iterator[str]:
    seen: set[str] = set()
    for name in names:
        if not name:
            yield f"main graph: a {kind} has no name"
        elif name in seen:
            yield f"main graph: two {kind}s are called {name}"
        else:
            seen.add(name)


def _order(where: str, nodes: ir.Graph | ir.Function, known: Iterable[ir.Value]) -> Iterator[str]:
    """Values read before they are made, in the graph and in its loops."""
    have = set(known)
    for node in nodes:
        for value in node.inputs:
            if value is not None and value not in have:
                yield f"{where}: {node.name or node.op_type} reads {value.name} before it is made"
        for graph in _subgraphs(node):
            yield from _order(where, graph, have | set(graph.inputs))
        have |= set(node.outputs)
    for value in nodes.outputs:
        if value not in have:
            yield f"{where}: nothing makes the output {value.name}"


def _subgraphs(node: ir.Node) -> list[ir.Graph]:
    return [a.as_graph() for a in node.attributes.values() if a.type == ir.AttributeType.GRAPH]


def _inputs(model: ir.Model) -> Iterator[str]:
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        if value.dtype not in INPUT_DTYPES:
            yield f"input {value.name} is {value.dtype.name if value.dtype else 'untyped'}"
        if value.shape is None:
            yield f"input {value.name} has no shape"


def _state(model: ir.Model) -> Iterator[str]:
    ins, outs = (
        {v.name or "": v for v in values if (v.name or "").startswith(STATE)}
        for values in (model.graph.inputs, model.graph.outputs)
    )
    for name, value in ins.items():
        out = outs.pop(f"{name}_out", None)
        if out is None:
            yield f"{name} goes in and does not come out"
        elif (out.dtype, out.shape) != (value.dtype, value.shape):
            yield f"{name} is {value.dtype} {value.shape} and comes out as {out.dtype} {out.shape}"
        if (count := _num_readers(model, value)) != 1:
            yield f"{name} is read by {count} ops, not by the one that writes it"
    yield from (f"{name} comes out and does not go in" for name in outs)


def _num_readers(model: ir.Model, value: ir.Value) -> int:
    """ds4 nodes that read a value of the main graph, those in layer functions included."""
    count = 0
    for use in value.uses():
        function = model.functions.get(use.node.op_identifier())
        if function is not None and function.domain == LAYER_DOMAIN:
            count += len(function.inputs[use.idx].uses())
        else:
            count += 1
    return count


def _calls(model: ir.Model) -> Iterator[str]:
    has_bodies = any(f.domain == DOMAIN for f in model.functions.values())
    layers = [f for f in model.functions.values() if f.domain == LAYER_DOMAIN]
    for scope in (model.graph, *layers):
        for node in scope:
            function = model.functions.get(node.op_identifier())
            if function is None:
                if node.domain == LAYER_DOMAIN or (node.domain == DOMAIN and has_bodies):
                    yield f"{node.name}: the model has no function {node.domain}.{node.op_type}"
                continue
            takes = (len(function.inputs), len(function.outputs))
            if (len(node.inputs), len(node.outputs)) != takes:
                yield f"{node.name}: {node.op_type} has {takes[0]} inputs and {takes[1]} outputs"


def _functions(model: ir.Model) -> Iterator[str]:
    for function in model.functions.values():
        where = f"{function.domain}.{function.name}"
        wanted = DOMAIN if function.domain == LAYER_DOMAIN else ""
        strange = {
            n.op_type
            for n in ir.traversal.RecursiveGraphIterator(function.graph)
            if n.domain != wanted
        }
        if function.domain not in (DOMAIN, LAYER_DOMAIN):
            yield f"a function of the domain `{function.domain}`: {function.name}"
        elif strange:
            yield f"{where} holds {', '.join(sorted(strange))}"
        yield from _order(where, function, function.inputs)
        if function.domain == DOMAIN:
            yield from _writes(where, function)


def _writes(where: str, body: ir.Function) -> Iterator[str]:
    """Readers of a state tensor that a runtime could run after the write."""
    for write in (n for n in body if n.op_type == "ScatterND"):
        tensor = write.inputs[0]
        if tensor is None or not any(tensor is v for v in body.inputs):
            continue
        before, holder = _ancestors(write), _holders(body)
        for reader in dict.fromkeys(holder[use.node] for use in tensor.uses()):
            if reader is not write and reader.op_type != "Shape" and reader not in before:
                yield f"{where}: {reader.op_type} may read {tensor.name} after it is written"


def _holders(body: ir.Function) -> dict[ir.Node, ir.Node]:
    """Per node, the node of the body itself that holds it in its loops, or the node."""
    found: dict[ir.Node, ir.Node] = {}
    for node in body:
        inner = [n for g in _subgraphs(node) for n in ir.traversal.RecursiveGraphIterator(g)]
        found |= dict.fromkeys([node, *inner], node)
    return found


def _ancestors(node: ir.Node) -> set[ir.Node]:
    """Every node that must run before: producers of what it reads, loops' outer values included."""
    found: set[ir.Node] = set()
    waiting = [node]
    while waiting:
        for value in _reads(waiting.pop()):
            producer = value.producer()
            if producer is not None and producer not in found:
                found.add(producer)
                waiting.append(producer)
    return found


def _reads(node: ir.Node) -> Iterator[ir.Value]:
    yield from (v for v in node.inputs if v is not None)
    for graph in _subgraphs(node):
        for inner in graph:
            yield from _reads(inner)
