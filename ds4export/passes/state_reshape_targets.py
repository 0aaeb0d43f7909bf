"""One pass: reshapes say what they do without computing it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ds4export.passes._bodies import Constants, all_nodes, constant_array, replace_node, sweep
from ds4export.passes._facts import Shape
from ds4export.passes._known import BodyFacts, known_bodies
from ds4export.passes._moving_rules import flattened
from ds4export.passes._run import Tally, a_pass


@a_pass(needs=("sizes folded",), promises=("constant targets",))
def state_reshape_targets(model: ir.Model, tally: Tally) -> ir.Model:
    """Write the target of a Reshape as a constant: 0 copies a dimension, -1 is what is left.

    Before   n = Shape<0, 2>(x) ; y = Reshape(b, Concat(n, [4096]))        b is [B, T, 32, 128]
    After    y = Reshape(b, [0, 0, 4096])
    Before   n = Shape<-1>(x) ; y = Reshape(x, Concat([-1], n))                 x is [B, T, 4096] or [B, T, 1024]
    After    y = Flatten<axis=-1>(x)
    Why      two dispatches less a reshape
    Refuses  a target with two dimensions that are neither numbers nor in their place in the data
    Needs    sizes folded: numbers are known
    Promises constant targets: only what is refused computes its target; exact
    """
    for facts in known_bodies(model):
        constants = Constants(facts.body)
        for node in list(all_nodes(facts.body)):
            if node.op_type == "Reshape" and constant_array(node.inputs[1]) is None:
                _state(node, facts, constants, tally)
        sweep(facts.body)
    return model


def _state(node: ir.Node, facts: BodyFacts, constants: Constants, tally: Tally) -> None:
    source, out = node.inputs[0], node.outputs[0]
    assert source is not None, "Reshape without data"
    target = common_target(facts.shapes(source), facts.shapes(out))
    axis = common_flatten(facts.shapes(source), facts.shapes(out)) if target is None else None
    if target is not None:
        node.replace_input_with(1, constants.value(target))
        tally.rewrote()
    elif axis is not None:
        replace_node(node, ir.Node("", "Flatten", [source], [ir.AttrInt64("axis", axis)]))
        tally.rewrote()
    else:
        tally.refused(
            "two dimensions are known only when a step runs", f"{facts.body.name}.{out.name}"
        )


def common_target(sources: list[Shape | None], wanted: list[Shape | None]) -> np.ndarray | None:
    """The constant target that reshapes `sources` to `wanted` in every call."""
    pairs = [
        (s, w) for s, w in zip(sources, wanted, strict=True) if s is not None and w is not None
    ]
    if len(pairs) < len(sources) or len({len(w) for _, w in pairs}) != 1:
        return None
    target = [_common(axis, pairs) for axis in range(len(pairs[0][1]))]
    # what is left cannot be told where a copied dimension may be 0
    copied = [w[axis] for _, w in pairs for axis, number in enumerate(target) if number == 0]
    if target.count(-1) > (1 if all(dim.is_plain for dim in copied) else 0):
        return None
    return np.array(target, np.int64)


def _common(axis: int, pairs: list[tuple[Shape, Shape]]) -> int:
    """What one place of the target says in every call: the number, 0 to copy, else -1."""
    numbers = {wanted[axis].number for _, wanted in pairs}
    if len(numbers) == 1 and (number := numbers.pop()):
        return number
    return (
        0
        if all(source[axis : axis + 1] == wanted[axis : axis + 1] for source, wanted in pairs)
        else -1
    )


def common_flatten(sources: list[Shape | None], wanted: list[Shape | None]) -> int | None:
    """The axis, counted from the end, at which Flatten makes `wanted` of `sources` in every call."""
    pairs = [
        (s, w) for s, w in zip(sources, wanted, strict=True) if s is not None and w is not None
    ]
    if len(pairs) < len(sources):
        return None
    ranks = range(1, min(len(s) for s, _ in pairs))
    return next((-n for n in ranks if all(w == flattened(s, len(s) - n) for s, w in pairs)), None)
