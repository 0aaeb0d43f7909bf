"""indexer_topk against a loop over queries and entries: what is visible, what ties, how many."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ds4export.ops import indexer_topk
from ds4export.ops._body import BodyOptions
from ds4export.ops._define import Case, OpDef
from tests.kit.ops import (
    FLOAT32,
    OFFICIAL,
    Call,
    call_op,
    every_case,
    make_call,
    numerics_name,
    run_body,
)


def rounded(value: Tensor, options: BodyOptions) -> Tensor:
    return value.to(torch.bfloat16).float() if options.official else value


def score(call: Call, options: BodyOptions, b: int, t: int, j: int) -> float:
    """One query, one entry: every intermediate rounded to bf16 in official numerics."""
    q, weights = call.inputs["q"][b, t].float(), call.inputs["weights"][b, t].float()
    key = call.inputs["keys"][int(call.inputs["slots"][b]), j].float()
    heads, d = q.shape
    w = rounded(weights * (heads * d) ** -0.5, options)
    dots = rounded(torch.stack([(q[h] * key).sum() for h in range(heads)]), options)
    return float(rounded(rounded(dots.relu() * w, options).sum(), options))


@pytest.mark.parametrize(("op", "case", "options"), every_case("indexer_topk"))
def test_choice_is_the_highest_of_the_visible(op: OpDef, case: Case, options: BodyOptions) -> None:
    call = make_call(op, case, official=options.official)
    k, chosen = call.attributes["k"], call_op(call)["chosen"]
    for b in range(len(chosen)):
        p, n = int(call.inputs["positions"][b]), int(call.inputs["num_new"][b])
        assert (chosen[b, n:] == -1).all(), "padding chooses nothing"
        for t in range(0, n, 1 + n // 8):
            visible = [j for j in range(call.inputs["keys"].shape[1]) if (j + 1) * 4 <= p + t + 1]
            mine = [j for j in chosen[b, t].tolist() if j >= 0]
            assert len(mine) == len(set(mine)) == min(k, len(visible))
            assert set(mine) <= set(visible)
            assert chosen[b, t, len(mine) :].tolist() == [-1] * (k - len(mine))
            by_score = {j: score(call, options, b, t, j) for j in visible}
            rest = [v for j, v in by_score.items() if j not in mine]
            slack = (
                2**-8 * max(map(abs, by_score.values()), default=0) if options.official else 1e-6
            )
            assert min((by_score[j] for j in mine), default=0) >= max(rest, default=-1e9) - slack


@pytest.mark.parametrize("options", [FLOAT32, OFFICIAL], ids=numerics_name)
def test_equal_scores_take_the_lower_entry_first(options: BodyOptions) -> None:
    case = indexer_topk._case("", [(200, 2)], 2, 6, ties=True)
    call = make_call(indexer_topk.OP, case, official=options.official)
    call.inputs["keys"][:, 40] *= 2  # an entry above all the equal ones, if its score is positive
    call.inputs["q"][:], call.inputs["weights"][:] = call.inputs["keys"][0, 0], 1.0
    for made in (call_op(call), run_body(call, options, call_op(call))):
        assert made["chosen"][0, 0].tolist() == [40, 0, 1, 2, 3, 4]


def test_negative_scores_are_chosen_before_nothing() -> None:
    case = indexer_topk._case("", [(39, 1)], 1, 12)
    call = make_call(indexer_topk.OP, case, official=False)
    call.inputs["weights"][:] = -1.0
    for made in (call_op(call), run_body(call, FLOAT32, call_op(call))):
        chosen = made["chosen"][0, 0].tolist()
        assert sorted(chosen) == [-1, -1, *range(10)]
