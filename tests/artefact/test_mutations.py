"""Damaged artefacts end in a typed error, or run and say what the original says."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from functools import cache
from hashlib import sha256
from pathlib import Path
from random import Random

import numpy as np
import pytest

from ds4export.errors import Ds4Error, RuntimeInputError
from ds4export.runtime import open_artefact
from ds4export.runtime.ort_values import numpy_value
from ds4export.runtime.runner import StepInputs
from tests.kit.artefact_mutations import FORGED, HARMLESS, MUTATIONS, graphs_mutations
from tests.kit.artefacts import copy_artefact, exported

SEEDS = 5
MAX_SECONDS = 20


@pytest.fixture(autouse=True)
def _no_hang() -> Iterator[None]:
    def stop(*args: object) -> None:
        raise TimeoutError(f"no answer within {MAX_SECONDS} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(MAX_SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def said(folder: Path) -> str:
    """Open, encode, make one step of two rows: a hash of everything the graphs answer."""
    with open_artefact(folder, threads=1) as model:
        model.encode("In the beginning")
        inputs = StepInputs.checked(
            model.runner.limits, [[1, 2, 3], [4, 5, 6]], slots=[1, 0], positions=[0, 0]
        )
        streams_in = None
        if model.artefact.manifest.layers[0]:
            c = model.artefact.manifest.config
            shape = (2, 3, c.hc_mult, c.hidden_size)
            streams_in = np.linspace(-1, 1, int(np.prod(shape)), dtype=np.float32).reshape(shape)
        result = model.runner.step(inputs, streams_in=streams_in)
        answers = [numpy_value(result.streams)]
        if result.logits is not None:
            answers.append(result.logits)
        if model.runner.has_mtp:
            mtp = model.runner.mtp_step(inputs, result.streams).logits
            assert mtp is not None
            answers.append(mtp)
        return sha256(b"".join(a.tobytes() for a in answers)).hexdigest()


@cache
def original(layers: tuple[int, int]) -> str:
    return said(exported("nano", layers=layers))


def outcome(folder: Path) -> str | Ds4Error:
    try:
        return said(folder)
    except Ds4Error as error:
        return error


def test_there_are_enough_of_them() -> None:
    assert len(MUTATIONS) * SEEDS + len(graphs_mutations()) >= 100
    assert set(MUTATIONS) >= FORGED | HARMLESS


@pytest.mark.parametrize("name", sorted(MUTATIONS))
@pytest.mark.parametrize("number", range(SEEDS))
def test_damage_is_refused_or_harmless(
    tmp_path: Path, name: str, number: int, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = copy_artefact(exported("nano", layers=(0, 1)), tmp_path / "copy")
    MUTATIONS[name](folder, Random(f"{name} {number}"))
    found = outcome(folder)
    if isinstance(found, Ds4Error):
        assert name not in HARMLESS, str(found)
        assert_well_said(found)
    elif name not in FORGED:
        assert found == original((0, 1))
    assert capfd.readouterr() == ("", "")  # ONNX Runtime, too, says nothing past the error


@pytest.mark.parametrize("name", sorted(graphs_mutations()))
def test_damage_to_the_second_graph(tmp_path: Path, name: str) -> None:
    folder = copy_artefact(exported("nano", layers=(3, 4)), tmp_path / "copy")
    assert outcome(folder) == original((3, 4))
    graphs_mutations()[name](folder, Random(name))
    found = outcome(folder)
    assert isinstance(found, Ds4Error)
    assert_well_said(found)


def assert_well_said(error: Ds4Error) -> None:
    text = str(error)
    assert error.what
    assert error.where or isinstance(error, RuntimeInputError)  # a step's input has no place
    assert error.found
    assert len(text) < 3000
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", text)
    text.encode()
