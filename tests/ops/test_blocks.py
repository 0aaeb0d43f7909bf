"""Bodies that go through queries or vocabulary in blocks: small blocks give what one block gives."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest

from ds4export.ops import _attention, _body_numerics, indexer_topk
from ds4export.ops._body import BodyOptions
from ds4export.ops._define import Case, OpDef
from tests.kit.compare import assert_close
from tests.kit.ops import call_op, every_case, forget_sessions, live_rows, make_call, run_body

BLOCKED = (
    "indexer_topk",
    "attention_window",
    "attention_csa",
    "attention_hca",
    "head",
    "linear_fp8",
    "linear_bf16",
    "grouped_linear",
    "moe",
    "shared_expert",
)


@pytest.fixture(autouse=True, scope="module")
def _small_blocks() -> Iterator[None]:
    """So small that a block holds one to three queries, or a few rows of a weight."""
    forget_sessions()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_attention, "GATHERED_ELEMENTS", 6000)
        patch.setattr(indexer_topk, "BLOCK_ELEMENTS", 1000)
        patch.setattr(_body_numerics, "BLOCK_ELEMENTS", 1500)
        yield
    forget_sessions()


def small_cases() -> list[Any]:
    """Without the large vocabularies, which would take a thousand blocks and more."""
    return [p for p in every_case(*BLOCKED) if not re.search(r"head-.*vocabulary\d{4}", str(p.id))]


@pytest.mark.parametrize(("op", "case", "options"), small_cases())
def test_small_blocks_change_nothing(op: OpDef, case: Case, options: BodyOptions) -> None:
    call = make_call(op, case, official=options.official)
    want = live_rows(call, call_op(call))
    got = live_rows(call, run_body(call, options, call_op(call)))
    bound = op.tolerance.official if options.official else op.tolerance.float32
    for name, expected in want.items():
        assert_close(got[name], expected, relative=bound, what=name)
