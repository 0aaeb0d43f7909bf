"""Every case of every op: the ONNX body in ONNX Runtime gives what the reference gives."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ds4export.ops import ALL_OPS
from ds4export.ops._body import BodyOptions
from ds4export.ops._define import Case, OpDef
from ds4export.ops.indexer_topk import scores
from tests.kit.compare import assert_close, assert_equal
from tests.kit.ops import Call, call_op, every_case, live_rows, make_call, run_body

STATEFUL = [name for name, op in ALL_OPS.items() if op.aliases]
# Choices are compared as sets: in exact arithmetic the order inside a choice means nothing.
CHOICES = {"indexer_topk": "chosen"}


@pytest.mark.parametrize(("op", "case", "options"), every_case())
def test_body_gives_what_the_reference_gives(op: OpDef, case: Case, options: BodyOptions) -> None:
    call = make_call(op, case, official=options.official)
    want = live_rows(call, call_op(call))
    got = live_rows(call, run_body(call, options, call_op(call)))
    bound = op.tolerance.official if options.official else op.tolerance.float32
    row = op.tolerance.row if options.official else float("inf")
    for name, expected in want.items():
        if name == CHOICES.get(op.name):
            assert_same_choice(call, got[name], expected)
        else:
            assert_close(got[name], expected, relative=bound, row=row, what=name)


@pytest.mark.parametrize(("op", "case", "options"), every_case(*STATEFUL))
def test_state_is_updated_in_place(op: OpDef, case: Case, options: BodyOptions) -> None:
    call = make_call(op, case, official=options.official)
    like = call_op(call)
    apart = live_rows(call, run_body(call, options, like))
    shared = live_rows(call, run_body(call, options, like, in_place=True))
    for name, expected in apart.items():
        assert_equal(shared[name], expected, name)


def assert_same_choice(call: Call, got: Tensor, want: Tensor) -> None:
    """Equal as sets, but for entries whose scores are one rounding apart."""
    assert got.shape == want.shape
    for b, t in (got != want).any(-1).nonzero().tolist():
        mine, theirs = (set(choice[b, t].tolist()) for choice in (got, want))
        if mine == theirs:
            continue
        q, weights, keys = (call.inputs[name] for name in ("q", "weights", "keys"))
        slot = int(call.inputs["slots"][b])
        at = torch.tensor(sorted(mine ^ theirs))
        assert (at >= 0).all(), f"row {(b, t)}: {sorted(mine)}, expected {sorted(theirs)}"
        near = scores(q[b, t : t + 1], weights[b, t : t + 1], keys[slot, at])[0]
        spread = float(near.max() - near.min())
        one_rounding = float(near.abs().max()) * (2**-8 if q.dtype == torch.bfloat16 else 1e-6)
        assert spread <= one_rounding, f"row {(b, t)}: scores {near.tolist()} of {at.tolist()}"
