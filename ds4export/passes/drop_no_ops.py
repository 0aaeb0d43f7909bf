"""One pass: nodes that return their input go."""

from __future__ import annotations

import onnx_ir as ir

from ds4export.passes._bodies import all_nodes, replace_uses, sweep
from ds4export.passes._known import BodyFacts, known_bodies
from ds4export.passes._moving_rules import ZERO
from ds4export.passes._run import Tally, a_pass

# With an output of the shape of the input, these return the input itself.
BY_SHAPE = ("Reshape", "Expand", "Slice")


@a_pass(needs=("bodies",), promises=("no no-ops",))
def drop_no_ops(model: ir.Model, tally: Tally) -> ir.Model:
    """Let the consumers of a node that changes nothing read its input.

    Before   y = Slice(x, 0, 4096, axis=1)          x is [B, 4096] in every call
    After    x
    Before   y = Pad(x, [0, 0, 0, 0])
    After    x
    Why      a copy of x and a dispatch less; bodies pad to whole blocks, and released widths are whole blocks
    Refuses  a shape that is not the input's in every call; the slice of a ring's history (it keeps an order)
    Needs    bodies: there is something to drop in
    Promises no no-ops: no Reshape, Expand, Slice or Pad whose result is its input; exact
    """
    for facts in known_bodies(model):
        for node in list(all_nodes(facts.body)):
            if node.op_type in BY_SHAPE or node.op_type == "Pad":
                _drop(node, facts, tally)
        sweep(facts.body)
    return model


def _drop(node: ir.Node, facts: BodyFacts, tally: Tally) -> None:
    source, out = node.inputs[0], node.outputs[0]
    assert source is not None, f"{node.op_type} without data"
    same = _changes_nothing(node, source, facts)
    if all(same) and out.uses():
        replace_uses(out, source)
        tally.rewrote()
    elif any(same):
        tally.refused("it changes something in some calls", f"{facts.body.name}.{out.name}")


def _changes_nothing(node: ir.Node, source: ir.Value, facts: BodyFacts) -> list[bool]:
    """Per call, whether the result is known to be the input."""
    if node.op_type == "Pad":
        pads = node.inputs[1]
        assert pads is not None, "Pad without pads"
        return [c is not None and all(s == ZERO for s in c) for c in facts.contents(pads)]
    pairs = zip(facts.shapes(source), facts.shapes(node.outputs[0]), strict=True)
    return [before is not None and before == after for before, after in pairs]
