"""One pass: the op bodies go."""

from __future__ import annotations

import onnx_ir as ir

from ds4export.passes._bodies import bodies
from ds4export.passes._run import Tally, a_pass


@a_pass(needs=("flat",), promises=("no bodies",))
def drop_bodies(model: ir.Model, tally: Tally) -> ir.Model:
    """Delete the body of every ds4 op.

    Before   layers.7/attn/hc_pre: ds4.hc_pre ; function ds4.hc_pre
    After    layers.7/attn/hc_pre: ds4.hc_pre
    Why      a function silently beats the plugin of its name; without it a missing plugin is a parse error
    Refuses  nothing
    Needs    flat: a layer function would still call a body that is gone
    Promises no bodies: the model has no function of ds4
    """
    for body in bodies(model):
        del model.functions[body.identifier()]
        tally.rewrote()
    return model
