"""The outputs that must be equal on the host are outputs, and their bounds alone would let a difference through."""

from __future__ import annotations

import pytest

from ds4export.ops import ALL_OPS
from tests.plugins.row_cases import EQUAL_OUTPUTS


@pytest.mark.parametrize(("op", "output"), EQUAL_OUTPUTS.items())
def test_an_output_that_must_be_equal_is_one(op: str, output: str) -> None:
    assert output in ALL_OPS[op].outputs
    assert ALL_OPS[op].tolerance.row > 0
