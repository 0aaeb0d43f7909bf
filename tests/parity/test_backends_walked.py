"""What runs that walk graphs node by node have in common, seen at the one on torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ds4export.artefact import open_artefact_folder
from ds4export.errors import RuntimeInputError
from ds4export.model.weights import array_from_tensor
from ds4export.parity.layer_run import seeded_streams
from ds4export.parity.subject import Subject
from ds4export.parity.torch_backend import TorchBackend, TorchEndToEnd
from ds4export.runtime.runner import StepInputs
from tests.kit.artefacts import exported
from tests.runtime.trt_kit import assert_same_bits

POOL = {"num_slots": 2, "max_context": 64}


def opened(name: str, layers: tuple[int, int] | None = None) -> TorchEndToEnd:
    artefact = open_artefact_folder(exported(name, official=True, layers=layers))
    return TorchBackend(Subject(artefact)).open(**POOL)


def step_of(run: TorchEndToEnd) -> StepInputs:
    return StepInputs.checked(run.limits, [[3, 1, 4, 1, 5]], slots=[1], positions=[0])


def test_logits_that_nobody_wants_are_not_given() -> None:
    """The protocol's words: none where none were asked for. Streams and caches are the same."""
    with_logits, without = opened("tiny-base"), opened("tiny-base")
    inputs = step_of(without)
    want, got = with_logits.step(inputs), without.step(inputs, want_logits=False)
    assert want.logits is not None
    assert got.logits is None
    assert_same_bits(got.streams, want.streams)
    for name, rows in with_logits.state.items():
        assert_same_bits(without.state[name], rows, name)
    assert with_logits.has_mtp
    next_ids = StepInputs.checked(without.limits, [[1, 4, 1, 5, 9]], slots=[1], positions=[0])
    made = without.mtp_step(next_ids, got.streams).logits
    assert made is not None
    assert np.isfinite(made).all()


def test_a_range_in_the_middle_takes_streams() -> None:
    run = opened("tiny-base", (1, 2))
    inputs, config = step_of(run), run.backend.subject.manifest.config
    assert not run.has_mtp
    with pytest.raises(RuntimeInputError, match="streams of the layers before are missing"):
        run.step(inputs)
    streams: Any = array_from_tensor(seeded_streams(config, (1, 5), [0], official=True))
    result = run.step(inputs, streams_in=streams)
    assert result.logits is None
    assert run.streams(result.streams).shape == streams.shape


def test_a_range_from_the_first_layer_takes_none() -> None:
    run = opened("tiny-base")
    config = run.backend.subject.manifest.config
    streams = array_from_tensor(seeded_streams(config, (1, 5), [0], official=True))
    with pytest.raises(RuntimeInputError, match="begins with the first layer"):
        run.step(step_of(run), streams_in=streams)
