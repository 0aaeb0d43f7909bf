"""One pass: 1/x is written as a Reciprocal, which no runtime contracts."""

from __future__ import annotations

import onnx_ir as ir

from ds4export.passes._bodies import all_nodes, bodies, constant_array, replace_node, sweep
from ds4export.passes._run import Tally, a_pass


@a_pass(needs=("bodies",), promises=("reciprocals",))
def write_reciprocals(model: ir.Model, tally: Tally) -> ir.Model:
    """Replace a division of the constant 1 by Reciprocal.

    Before   s = Sqrt(v) ; r = Div(1.0, s) ; y = Mul(x, r)
    After    s = Sqrt(v) ; r = Reciprocal(s) ; y = Mul(x, r)
    Why      ONNX Runtime contracts Div and Mul to Div(x, s) from its basic level on: one rounding less than the model
    Refuses  a numerator that is no scalar float 1
    Needs    bodies: there is something to write in
    Promises reciprocals: no float Div has the numerator 1; exact, both round 1/x once
    """
    for body in bodies(model):
        for node in list(all_nodes(body)):
            one = constant_array(node.inputs[0]) if node.op_type == "Div" else None
            if one is not None and one.ndim == 0 and one.dtype.kind == "f" and one == 1:
                replace_node(node, ir.Node("", "Reciprocal", [node.inputs[1]]))
                tally.rewrote()
        sweep(body)
    return model
