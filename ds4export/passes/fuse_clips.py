"""One pass: a lower and an upper bound become one node."""

from __future__ import annotations

import onnx_ir as ir

from ds4export.passes._bodies import all_nodes, bodies, constant_array, replace_node, sweep
from ds4export.passes._run import Tally, a_pass


@a_pass(needs=("bodies",), promises=("bounds fused",))
def fuse_clips(model: ir.Model, tally: Tally) -> ir.Model:
    """Replace Min(Max(x, low), high) by Clip(x, low, high).

    Before   a = Max(x, -448.0) ; y = Min(a, 448.0)
    After    y = Clip(x, -448.0, 448.0)
    Why      a pass over x and a dispatch less
    Refuses  a bound that is not a scalar constant; low > high; a Max that something else reads too
    Needs    bodies: there is something to fuse in
    Promises bounds fused: no Min of a Max with scalar constants; exact, NaN stays NaN
    """
    for body in bodies(model):
        for node in list(all_nodes(body)):
            if node.op_type == "Min":
                _fuse(node, body.name, tally)
        sweep(body)
    return model


def _fuse(node: ir.Node, body: str, tally: Tally) -> None:
    lower = node.inputs[0].producer() if node.inputs[0] is not None else None
    if lower is None or lower.op_type != "Max":
        return
    low, high = (constant_array(n.inputs[1]) for n in (lower, node))
    if low is None or high is None or low.ndim or high.ndim:
        tally.refused("a bound is no scalar constant", f"{body}.{node.outputs[0].name}")
    elif low > high:
        tally.refused("the lower bound is above the upper", f"{body}.{node.outputs[0].name}")
    elif len(lower.outputs[0].uses()) > 1:
        tally.refused("the value between the bounds is read too", f"{body}.{node.outputs[0].name}")
    else:
        replace_node(node, ir.Node("", "Clip", [lower.inputs[0], lower.inputs[1], node.inputs[1]]))
        tally.rewrote()
