"""One pass: sizes that are the same in every call become constants of the body."""

from __future__ import annotations

import onnx_ir as ir

from ds4export.passes._bodies import Constants, all_nodes, replace_uses, sweep
from ds4export.passes._known import BodyFacts, known_bodies
from ds4export.passes._run import Tally, a_pass


@a_pass(needs=("bodies",), promises=("sizes folded",))
def fold_sizes(model: ir.Model, tally: Tally) -> ir.Model:
    """Replace an integer that is the same number in every call of an op by a constant.

    Before   n = Shape<start=1>(weight) ; short = (128 - n mod 128) mod 128        weight is [O, 4096] or [O, 1024]
    After    short = Constant [0]
    Why      the calls of an op share their widths; ONNX Runtime would fold the same nodes again in every layer
    Refuses  a size that differs between two calls; a size that is known only when a step runs
    Needs    bodies: there is something to fold in
    Promises sizes folded: no integer arithmetic on constants and weight shapes is left; exact
    """
    for facts in known_bodies(model):
        constants = Constants(facts.body)
        for node in list(all_nodes(facts.body)):
            _fold(node, facts, constants, tally)
        sweep(facts.body)
    return model


def _fold(node: ir.Node, facts: BodyFacts, constants: Constants, tally: Tally) -> None:
    if node.op_type in ("Constant", "Loop"):
        return
    for out in node.outputs:
        numbers = facts.numbers(out)
        if numbers is not None and out.uses():
            replace_uses(out, constants.value(numbers))
            tally.rewrote()
        elif numbers is None and _differs(facts, out):
            tally.refused("the size differs between calls", f"{facts.body.name}.{out.name}")


def _differs(facts: BodyFacts, value: ir.Value) -> bool:
    """Whether every call has numbers, but not the same."""
    contents = facts.contents(value)
    return all(c is not None and all(s.number is not None for s in c) for c in contents)
