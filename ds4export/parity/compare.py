"""The verdict on one op call: outputs of the same inputs, padding aside, within the op's own bounds.

Values are compared on live tokens, state on the rows that either side wrote (all others must be untouched, other
slots included), choices as sets. Bounds are `OpDef.tolerance`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ds4export.model.weights import array_from_tensor
from ds4export.ops import _route, indexer_topk
from ds4export.parity.bounds import beyond, call_failure
from ds4export.parity.choices import Flips, compare_choices
from ds4export.parity.metrics import Difference, difference, equal_bits
from ds4export.parity.reference import Call
from ds4export.runtime.runner import StepInputs

Array = NDArray[Any]
Mask = NDArray[np.bool_]

CHOICES = {"indexer_topk": "chosen", "route_scores": "indices", "route_hash": "indices"}
BY_ROW = ("hc_head", "head")  # ops whose second axis is logit_rows


@dataclass(frozen=True)
class OutputFinding:
    """One output of one op: a difference, or flips where it is a choice."""

    name: str
    difference: Difference = field(default_factory=Difference)
    flips: Flips | None = None
    failure: str = ""  # a sentence; empty where the output is within its bounds

    def merged(self, other: OutputFinding) -> OutputFinding:
        flips = self.flips.merged(other.flips) if self.flips and other.flips else self.flips
        merged = self.difference.merged(other.difference)
        return OutputFinding(self.name, merged, flips, self.failure or other.failure)


def live_tokens(step: StepInputs) -> Mask:
    """[B, T]: the tokens that are not padding."""
    return np.arange(step.ids.shape[1]) < step.num_new[:, None]


def live_rows(step: StepInputs) -> Mask:
    """[B, R]: the logit rows that name a token that is not padding."""
    return np.asarray((step.logit_rows >= 0) & (step.logit_rows < step.num_new[:, None]))


def compare_call(
    call: Call,
    got: Sequence[Array],
    step: StepInputs,
    *,
    carried: float = 0.0,
    slack: float = 1.0,
) -> list[OutputFinding]:
    """Every output of one op against the reference's.

    Args:
        call: the reference's.
        got: the outputs under test.
        step: whose tokens are live.
        carried: the bound where `got` comes from a run with inputs of its own, which carry errors already; then any
            flip is a finding, and only rows that the reference wrote are compared.
        slack: factor on the op's bounds.
    """
    official = call.is_official
    names, wanted = list(call.op.outputs), [array_from_tensor(t) for t in call.outputs]
    if len(got) != len(wanted):
        return [OutputFinding(names[0], failure=f"{len(got)} outputs, reference {len(wanted)}")]
    live = live_rows(step) if call.op.name in BY_ROW else live_tokens(step)
    findings = []
    for name, mine, want in zip(names, got, wanted, strict=True):
        if name in (call.op.aliases or {}):
            before = array_from_tensor(call.input((call.op.aliases or {})[name]))
            found = state_finding(name, mine, want, before, step, written_only=carried > 0)
        elif CHOICES.get(call.op.name) == name:
            found = _choice(call, name, mine, want, live, official)
        else:
            mine = _aligned(call, name, got, mine)
            found = OutputFinding(name, difference(mine, want, live))
        findings.append(_judged(found, call, official, carried, slack))
    return findings


def _judged(
    found: OutputFinding, call: Call, official: bool, carried: float, slack: float
) -> OutputFinding:
    if found.failure:
        return found
    if found.flips is not None:
        return replace(found, failure=_flip_failure(found.flips, any_flip=carried > 0))
    if carried:
        return replace(found, failure=beyond(found.difference, carried))
    failure = call_failure(found.difference, call.op, found.name, official, slack)
    return replace(found, failure=failure)


def _flip_failure(flips: Flips, *, any_flip: bool) -> str:
    if flips.problem:
        return flips.problem
    if flips.unexplained or (any_flip and flips.flipped):
        return f"{flips.worst} of {flips.of} indices, margin {flips.margin:.1g}"
    return ""


def state_finding(
    name: str,
    got: Array,
    want: Array,
    before: Array,
    step: StepInputs,
    *,
    written_only: bool = False,
) -> OutputFinding:
    """Rows that either side wrote; the scratch row of a slot that takes part means nothing."""
    if got.shape != want.shape or got.dtype != want.dtype:
        return OutputFinding(name, difference(got, want))
    judged = np.ones(want.shape[:2], bool)
    judged[step.slots, -1] = False
    wrote = judged & ~equal_bits(want, before).all(-1)
    touched = judged & ~wrote & ~equal_bits(got, before).all(-1)
    if touched.any() and not written_only:
        slot, row = (int(i) for i in np.argwhere(touched)[0])
        count = int(touched.sum())
        return OutputFinding(
            name,
            Difference(index=(slot, row), problem="wrote"),
            failure=f"wrote {count} rows that the reference leaves alone, first",
        )
    return OutputFinding(name, difference(got, want, wrote))


def _choice(
    call: Call, name: str, got: Array, want: Array, live: Mask, official: bool
) -> OutputFinding:
    if call.op.name == "route_hash":
        wrong = live & ~(got == want).all(-1) if got.shape == want.shape else live
        index = tuple(int(i) for i in np.argwhere(wrong)[0]) if wrong.any() else ()
        flips = Flips(int(wrong.sum()), int(wrong.sum()), int(live.sum()), index=index)
        bad = (
            f"experts {got[index].tolist()}, the table says {want[index].tolist()}" if index else ""
        )
        return OutputFinding(name, flips=replace(flips, problem=bad))
    scores = _topk_scores(call) if call.op.name == "indexer_topk" else _route_scores(call)
    # route_scores is float32 in both numerics
    bf16 = official and call.op.name == "indexer_topk"
    return OutputFinding(name, flips=compare_choices(got, want, live, scores, official=bf16))


def _aligned(call: Call, name: str, got: Sequence[Array], mine: Array) -> Array:
    """Routing weights in the reference's order of experts; those of flipped tokens are taken as they should be."""
    if call.op.name != "route_scores" or name != "weights":
        return mine
    want_weights, want_indices = (array_from_tensor(t) for t in call.outputs)
    indices = got[1]
    if indices.shape != want_indices.shape or mine.shape != want_weights.shape:
        return mine
    same = (np.sort(indices, -1) == np.sort(want_indices, -1)).all(-1, keepdims=True)
    mine_order, want_order = np.argsort(indices, -1), np.argsort(want_indices, -1)
    aligned = np.empty_like(mine)
    np.put_along_axis(aligned, want_order, np.take_along_axis(mine, mine_order, -1), -1)
    return np.where(same, aligned, want_weights)


def _topk_scores(call: Call) -> Any:
    q, weights, keys, slots, positions, num_new = call.inputs
    _, ratio = call.attributes

    def scores(index: tuple[int, ...]) -> Array:
        b, t = index
        count = int(positions[b] + num_new[b]) // ratio
        score = indexer_topk.scores(q[b, t : t + 1], weights[b, t : t + 1], keys[slots[b], :count])
        visible = (np.arange(count) + 1) * ratio <= int(positions[b]) + t + 1
        return np.where(visible, score[0].numpy(), -np.inf)

    return scores


def _route_scores(call: Call) -> Any:
    x, gate, bias = call.inputs

    def scores(index: tuple[int, ...]) -> Array:
        return (_route.scores(x[index], gate) + bias).numpy()

    return scores
