"""One pass: of values that hold the same sizes, the first stays."""

from __future__ import annotations

import onnx_ir as ir

from ds4export.passes._bodies import replace_uses, subgraphs, sweep
from ds4export.passes._known import BodyFacts, known_bodies
from ds4export.passes._run import Tally, a_pass

Key = tuple[object, ...]


@a_pass(needs=("sizes folded",), promises=("no equal sizes",))
def merge_equal_sizes(model: ir.Model, tally: Tally) -> ir.Model:
    """Let the consumers of a vector of sizes read an earlier vector of the same sizes.

    Before   a = Shape<0, 1>(q) ; b = Shape<0, 1>(slots)          q is [B, T, H, d], slots is [B]
    After    a = Shape<0, 1>(q)
    Before   n = Max(count, 1)                                     count is T + 3 in every call
    After    count
    Why      dimensions known by the same name are equal, which no runtime can see from one body
    Refuses  vectors that are equal in some calls only
    Needs    sizes folded: numbers are constants already, only named sizes are looked at
    Promises no equal sizes: within a scope and those around it; exact
    """
    for facts in known_bodies(model):
        _merge(facts.body, facts, {}, tally)
        sweep(facts.body)
    return model


def _merge(
    scope: ir.Function | ir.Graph, facts: BodyFacts, around: dict[Key, ir.Value], tally: Tally
) -> None:
    known = dict(around)
    for node in list(scope):
        for graph in subgraphs(node):
            _merge(graph, facts, known, tally)
        for out in node.outputs:
            key = _key(out, facts)
            first = known.setdefault(key, out) if key else out
            if first is not out and out.uses():
                replace_uses(out, first)
                tally.rewrote()


def _key(value: ir.Value, facts: BodyFacts) -> Key:
    """Shape and content in every call, where they are known and not numbers; else nothing."""
    contents = facts.contents(value)
    if any(c is None for c in contents) or facts.numbers(value) is not None:
        return ()
    return (*contents, *facts.shapes(value))
