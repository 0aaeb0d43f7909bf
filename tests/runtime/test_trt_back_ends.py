"""Names of back ends: what they refuse, and that each opens what it stands for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ds4export.engine.profile import StepShape
from ds4export.errors import Ds4Error, RuntimeInputError, ToolchainError
from ds4export.runtime import BackEnd, open_artefact
from ds4export.runtime.model import Model
from ds4export.runtime.onnx_runner import OnnxRunner
from ds4export.runtime.sampler import Sampling
from tests.kit.artefacts import exported
from tests.runtime.trt_kit import bench

ENGINE = Path("no-such-engine")


@pytest.mark.parametrize(
    ("given", "kind", "what"),
    [
        (BackEnd("tensorflow"), RuntimeInputError, "unknown --backend"),
        (BackEnd("onnxruntime", engine=ENGINE), RuntimeInputError, "--engine is for TensorRT"),
        (BackEnd("onnxruntime-cuda", plugins=ENGINE), RuntimeInputError, "--plugins is for"),
        (BackEnd("onnxruntime-cuda"), ToolchainError, "no CUDA provider"),
        (BackEnd("tensorrt-rtx"), RuntimeInputError, "`tensorrt-rtx` needs an engine"),
        (BackEnd("tensorrt", engine=ENGINE), Ds4Error, "the engine is not a folder"),
    ],
)
def test_refusals(given: BackEnd, kind: type[Ds4Error], what: str) -> None:
    with pytest.raises(kind, match=what) as caught:
        open_artefact(exported("nano", official=True), back_end=given)
    assert caught.value.expected


def test_the_default_is_the_cpu() -> None:
    with open_artefact(exported("nano", official=True), threads=1) as model:
        assert isinstance(model.runner, OnnxRunner)
        assert model.runner.placement.device is None
        limits, manifest = model.runner.limits, model.artefact.manifest
        assert (limits.num_slots, limits.max_context) == (manifest.max_batch, manifest.max_context)


def test_text_is_generated_over_an_engine() -> None:
    """A `Model` over the TensorRT runner, chunks longer than its profile, against the same over ONNX Runtime."""
    steps: Any = {
        "decode": StepShape((1, 3, 3), (1, 1, 1)),
        "prefill": StepShape((1, 1, 2), (1, 5, 5)),
    }
    made = bench("nano", steps=steps, fill=0.0)
    prompt = [1, *range(20, 32)]
    sampling = Sampling(temperature=0.0)
    with Model(made.runner.artefact, made.runner) as model:
        got = list(model.stream_ids(prompt, max_new_tokens=6, sampling=sampling))
        assert made.runner.num_recorded == 1
    with open_artefact(exported("nano", official=True), num_slots=1, threads=1) as model:
        want = list(model.stream_ids(prompt, max_new_tokens=6, sampling=sampling))
    assert got == want
    assert len(got) == 6
    made.torch.close()
