"""The stand-in TensorRT has no name that the real one lacks, where the real one is installed."""

from __future__ import annotations

from enum import Enum
from typing import Any

import pytest

from ds4export.engine.plan import messages_of
from ds4export.engine.tensorrt import RTX, open_flavour
from ds4export.errors import ToolchainError
from ds4export.runtime.trt_plan import PlanReader
from tests.runtime.trt_kit import flavour as standin_flavour
from tests.runtime.trt_kit import plans_of
from tests.runtime.trt_standin import CLASSES, ENUMS, OWN

trt: Any = pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")


@pytest.mark.parametrize("kind", CLASSES, ids=lambda k: k.__name__)
def test_methods_exist(kind: type) -> None:
    names = {n for n in vars(kind) if not n.startswith("_")} - OWN
    missing = names - set(dir(getattr(trt, kind.__name__)))
    assert names
    assert not missing


@pytest.mark.parametrize("kind", ENUMS, ids=lambda k: k.__name__)
def test_members_exist(kind: type[Enum]) -> None:
    assert set(kind.__members__) <= set(getattr(trt, kind.__name__).__members__)


def test_a_plan_that_is_none_is_refused_by_the_real_one_in_a_sentence() -> None:
    """Without a driver no plan at all can be read; junk is refused on every machine, and TensorRT's words are kept."""
    flavour = open_flavour(RTX)
    tensors = plans_of("nano", standin_flavour())["main"].shape.tensors
    with pytest.raises(ToolchainError, match="TensorRT cannot read the plan of `main`") as caught:
        PlanReader(flavour).read("main", b"no plan" * 20, tensors)
    assert "Serialization" in caught.value.found
    assert caught.value.where == f"{RTX} {flavour.version}"
    assert messages_of(trt).errors
