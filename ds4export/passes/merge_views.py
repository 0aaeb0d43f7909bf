"""One pass: chains of views become one Reshape."""

from __future__ import annotations

import onnx_ir as ir

from ds4export.passes._bodies import Constants, all_nodes, replace_node, replace_uses, sweep
from ds4export.passes._known import BodyFacts, known_bodies
from ds4export.passes._run import Tally, a_pass
from ds4export.passes.state_reshape_targets import common_target

VIEWS = ("Reshape", "Flatten", "Unsqueeze", "Squeeze")


@a_pass(needs=("constant targets",), promises=("no chains of views",))
def merge_views(model: ir.Model, tally: Tally) -> ir.Model:
    """Replace a Reshape, Flatten, Unsqueeze or Squeeze of another by one Reshape of its source.

    Before   a = Unsqueeze(p, 1) ; b = Unsqueeze(a, 2)          p is [B]
    After    b = Reshape(p, [0, 1, 1])
    Before   a = Reshape(x, [-1, 4096]) ; b = Reshape(a, [-1, 32, 128])
    After    b = Reshape(x, [-1, 32, 128])
    Why      a dispatch less a link
    Refuses  a chain whose target is not constant
    Needs    constant targets: what can be a constant is one
    Promises no chains of views: none that a constant target could replace; exact
    """
    for facts in known_bodies(model):
        constants = Constants(facts.body)
        for node in list(all_nodes(facts.body)):
            if node.op_type in VIEWS:
                _merge(node, facts, constants, tally)
        sweep(facts.body)
    return model


def _merge(node: ir.Node, facts: BodyFacts, constants: Constants, tally: Tally) -> None:
    source, out = node.inputs[0], node.outputs[0]
    assert source is not None, f"{node.op_type} without data"
    root = source
    while (before := root.producer()) is not None and before.op_type in VIEWS:
        assert before.inputs[0] is not None, f"{before.op_type} without data"
        root = before.inputs[0]
    if root is source:
        return
    if facts.shapes(root) == facts.shapes(out) and None not in facts.shapes(out):
        replace_uses(out, root)
        tally.rewrote()
        return
    target = common_target(facts.shapes(root), facts.shapes(out))
    if target is None:
        tally.refused("the chain has no constant target", f"{facts.body.name}.{out.name}")
        return
    replace_node(node, ir.Node("", "Reshape", [root, constants.value(target)]))
    tally.rewrote()
