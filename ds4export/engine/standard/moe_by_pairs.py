"""`moe` without a search: a turn of its loop for every (token, place), not for every expert that is used.

The parser of TensorRT for RTX refuses the two operators that find the tokens of an expert and bring them home:
`NonZero`, whose shape hangs on values, and `ScatterND` that adds. Refuses a body that uses them otherwise than `moe`.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from ds4export.engine.standard._insert import Inserter, Scope, nodes_with_scopes


def go_by_pairs(function: ir.Function) -> None:
    """Turn i is token i div k, place i mod k; a place without an expert of the run adds zeros.

    A token's results are added by rising place instead of by rising expert.
    """
    searches = [(s, n) for s, n in nodes_with_scopes(function) if n.op_type == "NonZero"]
    (_, used), (turn, tokens) = searches
    assert isinstance(turn, ir.Graph), "the tokens of an expert are not looked for in a loop"
    (adding,) = (n for n in turn if n.op_type == "ScatterND")
    chosen = _chosen(tokens)
    experts = _experts(function, used, chosen)
    pair = _pair(turn, chosen)
    _replace(turn, adding, _added(turn, adding, pair, chosen, experts))
    put = Inserter(turn, tokens)
    _replace(
        turn,
        tokens,
        put.op("Unsqueeze", put.op("Concat", pair.token, pair.place, axis=0), put.const(1)),
    )
    put = Inserter(function, used)
    _replace(function, used, put.op("Unsqueeze", experts, put.const(0)))


@dataclass(frozen=True)
class _Pair:
    """What a turn is about, each INT64 [1]."""

    number: ir.Value
    token: ir.Value
    place: ir.Value


def _chosen(tokens: ir.Node) -> ir.Value:
    """INT64 [tokens, k]: what a turn's expert is compared with; numbers outside the run are among them."""
    mask = tokens.inputs[0]
    equal = mask.producer() if mask is not None else None
    assert equal is not None, "NonZero does not read a comparison"
    assert equal.op_type == "Equal", f"NonZero reads {equal.op_type}"
    chosen = equal.inputs[0]
    assert chosen is not None, "Equal without data"
    return chosen


def _experts(function: ir.Function, before: ir.Node, chosen: ir.Value) -> ir.Value:
    """INT64 [tokens · k]: an expert of the run for every pair, the nearest where its own is not of the run."""
    rows = next(v for v in function.inputs if v.name == "expert_rows")
    put = Inserter(function, before)
    last = put.op("Sub", put.op("Shape", rows), put.const(1))
    flat = put.op("Reshape", chosen, put.const(-1))
    return put.op("Min", put.op("Max", flat, put.const(0)), last)


def _pair(turn: ir.Graph, chosen: ir.Value) -> _Pair:
    put = Inserter(turn, turn[0])
    number = put.op("Reshape", turn.inputs[0], put.const(1))
    places = put.op("Shape", chosen, start=1, end=2)
    return _Pair(number, put.op("Div", number, places), put.op("Mod", number, places))


def _added(
    turn: ir.Graph, adding: ir.Node, pair: _Pair, chosen: ir.Value, experts: ir.Value
) -> ir.Value:
    """What is carried, plus the turn's row at its token if the pair's own expert is of the run."""
    carried, _, row = adding.inputs
    assert carried is not None, "ScatterND has no data"
    assert row is not None, "ScatterND has no updates"
    put = Inserter(turn, adding)
    own = put.op("Gather", put.op("Reshape", chosen, put.const(-1)), pair.number)
    of_run = put.op("Equal", own, put.op("Gather", experts, pair.number))
    here = put.op("Equal", put.counted(put.op("Shape", carried, end=1)), pair.token)
    adds = put.op("Unsqueeze", put.op("And", here, of_run), put.const(1))
    return put.op("Add", carried, put.op("Where", adds, row, put.filled(0.0, put.const(1))))


def _replace(scope: Scope, node: ir.Node, made: ir.Value) -> None:
    old = node.outputs[0]
    made.type = old.type
    old.replace_all_uses_with(made, replace_graph_outputs=True)
    scope.remove(node, safe=True)
