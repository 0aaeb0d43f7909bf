"""A graph as stable text: for golden tests, for diffs between passes, for people.

    graph ds4_main  ir 10  opset 21  ds4 1  ds4.layers 1
      in   ids: INT64[B, T]
      out  logits: FLOAT[B, R, 512]
      layers.0/attn: y, window_out = ds4.layers.attn_window(x, slots, ...)
    function ds4.rms_norm(x, weight) -> (y)
      cast = Cast<to=1>(x)
      y = Mul(cast, [1.0])

Numbers that builders append to names are counted anew, in the order of definition, so that equal graphs give equal
text. Constants of a few elements are written where they are read. Refuses nothing; weights are never read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import numpy as np
import onnx_ir as ir

MAX_ELEMENTS = 8  # of a constant that is written out
NUMBERED = re.compile(r"_\d+$")
INDENT = "  "


def model_text(model: ir.Model) -> str:
    """The main graph, then every function in the model's order."""
    imports = "  ".join(f"{d or 'opset'} {v}" for d, v in model.graph.opset_imports.items())
    lines = [
        f"graph {model.graph.name}  ir {model.ir_version}  {imports}",
        *graph_lines(model.graph),
    ]
    for function in model.functions.values():
        lines += ["", function_text(function)]
    return "\n".join(lines) + "\n"


def graph_lines(graph: ir.Graph) -> Iterator[str]:
    """Inputs, outputs and nodes of a main graph; its names are paths already and stay."""
    names = _Names(numbered=False)
    for kind, values in (("in  ", graph.inputs), ("out ", graph.outputs)):
        yield from (f"{INDENT}{kind} {v.name}: {_type(v)}" for v in values)
    for value in graph.initializers.values():
        yield f"{INDENT}have {value.name}: {_type(value)}"
    yield from _node_lines(graph, names, INDENT)


def function_text(function: ir.Function) -> str:
    """A function's signature and nodes."""
    names = _Names(numbered=True)
    inputs, outputs = ([v.name for v in values] for values in (function.inputs, function.outputs))
    for value in (*function.inputs, *function.outputs):
        names.keep(value)
    head = f"function {function.domain}.{function.name}({_list(inputs)}) -> ({_list(outputs)})"
    return "\n".join([head, *_node_lines(function, names, INDENT)])


class _Names:
    """The text's name of every value, given in the order in which values are asked for."""

    def __init__(self, *, numbered: bool) -> None:
        self.numbered = numbered
        self._given: dict[ir.Value, str] = {}
        self._counts: dict[str, int] = {}

    def keep(self, value: ir.Value) -> None:
        self._given[value] = value.name or ""

    def of(self, value: ir.Value | None) -> str:
        if value is None:
            return "-"
        if value not in self._given:
            constant = _constant(value)
            self._given[value] = constant or self._new(value.name or "")
        return self._given[value]

    def _new(self, name: str) -> str:
        if not self.numbered:
            return name
        stem = NUMBERED.sub("", name)
        self._counts[stem] = self._counts.get(stem, 0) + 1
        return stem if self._counts[stem] == 1 else f"{stem}.{self._counts[stem]}"


def _node_lines(nodes: ir.Graph | ir.Function, names: _Names, indent: str) -> Iterator[str]:
    for node in nodes:
        if node.op_type == "Constant" and _constant(node.outputs[0]):
            continue
        operator = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
        plain = (a for a in node.attributes.values() if a.type != ir.AttributeType.GRAPH)
        attributes = _list([f"{a.name}={_attribute(a)}" for a in plain])
        inputs = _list([names.of(v) for v in node.inputs])
        path = f"{node.name}: " if node.domain else ""
        # an output is named after what it is made of, so that the names in a loop come after those before it
        outputs = _list([names.of(v) for v in node.outputs])
        yield f"{indent}{path}{outputs} = {operator}{f'<{attributes}>' if attributes else ''}({inputs})"
        for graph in (
            a.as_graph() for a in node.attributes.values() if a.type == ir.AttributeType.GRAPH
        ):
            yield from _loop_lines(graph, names, indent + INDENT)


def _loop_lines(graph: ir.Graph, names: _Names, indent: str) -> Iterator[str]:
    yield f"{indent}each {_list([names.of(v) for v in graph.inputs])}:"
    yield from _node_lines(graph, names, indent + INDENT)
    yield f"{indent}{INDENT}-> {_list([names.of(v) for v in graph.outputs])}"


def _constant(value: ir.Value) -> str:
    """A small Constant written out, else nothing."""
    node = value.producer()
    if node is None or node.op_type != "Constant" or "value" not in node.attributes:
        return ""
    array = node.attributes["value"].as_tensor().numpy()
    return _nested(array) if array.size <= MAX_ELEMENTS else ""


def _nested(array: np.ndarray) -> str:
    if array.ndim == 0:
        return _scalar(array.item())
    return f"[{_list([_nested(part) for part in array])}]"


def _scalar(value: object) -> str:
    """A float as the shortest text that gives the same float32."""
    return str(np.float32(value)) if isinstance(value, float) else str(value)


def _attribute(attribute: ir.Attr) -> str:
    if attribute.type == ir.AttributeType.TENSOR:
        tensor = attribute.as_tensor()
        return f"{tensor.dtype.name}{list(tensor.shape)}"
    value = attribute.value
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"[{_list([_scalar(v) for v in value])}]"
    return _scalar(value)


def _type(value: ir.Value) -> str:
    dims = _list([str(d) for d in value.shape]) if value.shape is not None else "?"
    return f"{value.dtype.name if value.dtype is not None else '?'}[{dims}]"


def _list(parts: Sequence[str | None]) -> str:
    return ", ".join(p or "" for p in parts)
