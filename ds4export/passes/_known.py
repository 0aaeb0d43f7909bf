"""What is known of every value of a body before a step runs: shape, and content where it is made of sizes.

A body is interpreted once per signature, that is per distinct set of input shapes among its calls: a fact is used only
where it holds in all of them. Owns the walk and the calls' shapes; the rule of each operator stands in `_rules`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ds4export.passes._bodies import DOMAIN, bodies
from ds4export.passes._facts import NOTHING, Known, numbers_of
from ds4export.passes._rules import RULES
from ds4export.passes._size import Size, size

Signature = tuple[tuple[Size, ...], ...]


@dataclass(frozen=True)
class BodyFacts:
    """One body: what is known of its values, one table per signature."""

    body: ir.Function
    tables: tuple[dict[ir.Value, Known], ...]

    def shapes(self, value: ir.Value) -> list[tuple[Size, ...] | None]:
        return [table.get(value, NOTHING).shape for table in self.tables]

    def contents(self, value: ir.Value) -> list[tuple[Size, ...] | None]:
        return [table.get(value, NOTHING).content for table in self.tables]

    def rank(self, value: ir.Value) -> int | None:
        """The number of dimensions, where it is the same in every call."""
        ranks = {len(shape) if shape is not None else None for shape in self.shapes(value)}
        return ranks.pop() if len(ranks) == 1 else None

    def numbers(self, value: ir.Value) -> np.ndarray | None:
        """The INT64 value that is the same number, or vector of numbers, in every call."""
        first, *others = {table.get(value, NOTHING) for table in self.tables}
        numbers = numbers_of(first)
        if others or numbers is None or first.shape is None:
            return None
        return np.array(numbers, np.int64).reshape(() if not first.shape else -1)


def known_bodies(model: ir.Model) -> Iterator[BodyFacts]:
    """The facts of every op body that is called."""
    signatures = _signatures(model)
    for body in bodies(model):
        found = signatures.get(body.name, [])
        if found:
            yield BodyFacts(body, tuple(interpret(body, s) for s in found))


def _signatures(model: ir.Model) -> dict[str, list[Signature]]:
    """Distinct input shapes of the calls of each op; an op called with an unknown shape has none."""
    found: dict[str, dict[Signature, None]] = {}
    unknown = set()
    wrong = _misdeclared(model)
    for scope in (model.graph, *model.functions.values()):
        for node in (n for n in scope if n.domain == DOMAIN):
            signature = tuple(_dims(v) for v in node.inputs)
            if None in signature or any(v in wrong for v in node.inputs):
                unknown.add(node.op_type)
            found.setdefault(node.op_type, {})[tuple(s or () for s in signature)] = None
    return {op: list(signatures) for op, signatures in found.items() if op not in unknown}


def _misdeclared(model: ir.Model) -> set[ir.Value | None]:
    """Inputs of layer functions that some call feeds with numbers other than the declared ones."""
    wrong: set[ir.Value | None] = set()
    for call in (n for n in model.graph if n.op_identifier() in model.functions):
        function = model.functions[call.op_identifier()]
        if function.domain != DOMAIN:
            pairs = zip(call.inputs, function.inputs, strict=True)
            wrong |= {inner for outer, inner in pairs if not _fits(_dims(outer), _dims(inner))}
    return wrong


def _fits(actual: tuple[Size, ...] | None, declared: tuple[Size, ...] | None) -> bool:
    if actual is None or declared is None or len(actual) != len(declared):
        return False
    return all(d.number is None or a == d for a, d in zip(actual, declared, strict=True))


def _dims(value: ir.Value | None) -> tuple[Size, ...] | None:
    if value is None or value.shape is None:
        return None
    dims = [d if isinstance(d, int) else d.value for d in value.shape]
    return None if any(d is None for d in dims) else tuple(size(d) for d in dims if d is not None)


def interpret(body: ir.Function, signature: Signature) -> dict[ir.Value, Known]:
    """The facts of one call: input shapes, numbers or named dimensions."""
    table = {v: Known(shape) for v, shape in zip(body.inputs, signature, strict=True)}
    _walk(body, table)
    return table


def _walk(scope: ir.Function | ir.Graph, table: dict[ir.Value, Known]) -> None:
    for node in scope:
        inputs = [table.get(v, NOTHING) if v is not None else NOTHING for v in node.inputs]
        if node.op_type == "Loop":
            results = _loop(node, inputs, table)
        else:
            rule = RULES.get(node.op_type)
            results = rule(node, inputs) if rule else [NOTHING] * len(node.outputs)
        table.update(zip(node.outputs, results, strict=True))


def _loop(node: ir.Node, inputs: list[Known], table: dict[ir.Value, Known]) -> list[Known]:
    """Carried values keep their shape where the loop's body keeps it; stacked ones gain the number of iterations."""
    graph = node.attributes["body"].as_graph()
    carried = [Known(k.shape) for k in inputs[2:]]
    outside = {name for k in table.values() for name in _names(k)}
    while True:
        table.update(zip(graph.inputs, (Known(()), Known(()), *carried), strict=True))
        _walk(graph, table)
        after = [table.get(v, NOTHING) for v in graph.outputs[1 : 1 + len(carried)]]
        kept = [c if a.shape == c.shape else NOTHING for c, a in zip(carried, after, strict=True)]
        if kept == carried:
            break
        carried = kept
    (count,) = inputs[0].content or (size(f"iterations of {node.outputs[0].name}"),)
    stacked = []
    for out in graph.outputs[1 + len(carried) :]:
        shape = table.get(out, NOTHING).shape
        fixed = shape is not None and all(s.names <= outside for s in shape)
        stacked.append(Known((count, *shape)) if fixed and shape is not None else NOTHING)
    return [*carried, *stacked]


def _names(known: Known) -> set[str]:
    return {name for s in (*(known.shape or ()), *(known.content or ())) for name in s.names}
