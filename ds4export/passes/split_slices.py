"""One pass: slices that tile an axis become one Split."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import onnx_ir as ir

from ds4export.passes._bodies import Constants, constant_array, replace_uses, scopes, sweep
from ds4export.passes._known import BodyFacts, known_bodies
from ds4export.passes._run import Tally, a_pass

Group = tuple[ir.Value, int]
Cut = tuple[int, int, ir.Node]  # start, end


@a_pass(needs=("sizes folded",), promises=("tiles split",))
def split_slices(model: ir.Model, tally: Tally) -> ir.Model:
    """Replace slices that cover an axis without gap or overlap by one Split.

    Before   a = Slice(x, [0], [448], axes=[-1]) ; b = Slice(x, [448], [512], axes=[-1])          x is [..., 512]
    After    a, b = Split<axis=-1>(x, [448, 64])
    Why      a dispatch less a piece: rope, rounding of the other dims, half blocks
    Refuses  slices that leave a part of the axis unread, or read one twice; pieces in different scopes
    Needs    sizes folded: bounds are constants
    Promises tiles split: no two Slices of a value that tile one axis; exact
    """
    for facts in known_bodies(model):
        constants = Constants(facts.body)
        for scope in list(scopes(facts.body)):
            for (source, axis), cuts in _groups(scope, facts).items():
                _split(source, axis, sorted(cuts, key=lambda cut: cut[:2]), facts, constants, tally)
        sweep(facts.body)
    return model


def _groups(scope: ir.Function | ir.Graph, facts: BodyFacts) -> dict[Group, list[Cut]]:
    """The slices of a scope with constant bounds along one axis, by source and axis."""
    found: dict[Group, list[Cut]] = {}
    for node in scope:
        bounds = [constant_array(v) for v in node.inputs[1:]] if node.op_type == "Slice" else []
        sizes = [int(a[0]) for a in bounds if a is not None and a.size == 1]
        source = node.inputs[0] if len(sizes) == 3 == len(bounds) else None
        if source is None or (length := _length(source, sizes[2], facts)) is None:
            continue
        start, end, _ = slice(*sizes[:2]).indices(length)
        found.setdefault((source, sizes[2]), []).append((start, end, node))
    return found


def _length(value: ir.Value, axis: int, facts: BodyFacts) -> int | None:
    """The size of an axis, where it is the same number in every call."""
    lengths = {s[axis].number if s is not None else None for s in facts.shapes(value)}
    return lengths.pop() if len(lengths) == 1 else None


def _split(
    source: ir.Value,
    axis: int,
    cuts: list[Cut],
    facts: BodyFacts,
    constants: Constants,
    tally: Tally,
) -> None:
    if len(cuts) < 2:
        return
    starts, ends = [c[0] for c in cuts], [c[1] for c in cuts]
    whole = starts[0] == 0 and ends[-1] == _length(source, axis, facts)
    if not whole or any(end != start for (_, end, _), (start, _, _) in pairwise(cuts)):
        tally.refused(
            "the slices do not tile the axis", f"{facts.body.name}.{source.name} axis {axis}"
        )
        return
    nodes = [node for *_, node in cuts]
    sizes = constants.value(np.array(ends) - np.array(starts))
    made = ir.Node(
        "", "Split", [source, sizes], [ir.AttrInt64("axis", axis)], num_outputs=len(cuts)
    )
    scope = nodes[0].graph
    assert scope is not None, "a slice in no graph"
    scope.insert_before(min(nodes, key=list(scope).index), made)
    for node, out in zip(nodes, made.outputs, strict=True):
        out.name = node.outputs[0].name
        replace_uses(node.outputs[0], out)
        scope.remove(node, safe=True)
    tally.rewrote()
