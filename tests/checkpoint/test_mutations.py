"""Damaged checkpoints end in a typed error, or load and show exactly what is on disk."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from ds4export.checkpoint import Checkpoint, open_checkpoint
from ds4export.config import config_from_json
from ds4export.errors import Ds4Error
from tests.kit.checkpoints import copy_of, read_tensors, recorded
from tests.kit.mutations import MUTATIONS

SEEDS = 8
MAX_SECONDS = 20
HARMLESS = {"weight_bit_flipped", "file_is_a_link"}
ORIGINAL = read_tensors(recorded("tiny-a"))


@pytest.fixture(autouse=True)
def _no_hang() -> Iterator[None]:
    def stop(*args: object) -> None:
        raise TimeoutError(f"no answer within {MAX_SECONDS} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(MAX_SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def test_there_are_enough_of_them() -> None:
    assert len(MUTATIONS) * SEEDS >= 120


@pytest.mark.parametrize("name", sorted(MUTATIONS))
@pytest.mark.parametrize("number", range(SEEDS))
def test_damage_is_refused_or_harmless(tmp_path: Path, name: str, number: int) -> None:
    folder = copy_of("tiny-a", tmp_path / "copy")
    MUTATIONS[name](folder, Random(f"{name} {number}"))
    try:
        checkpoint = open_checkpoint(folder)
    except Ds4Error as error:
        refusal = error
    else:
        assert_sound(checkpoint, data_changed=name == "weight_bit_flipped")
        return
    assert name not in HARMLESS, str(refusal)
    assert_well_said(refusal)


def assert_sound(checkpoint: Checkpoint, *, data_changed: bool) -> None:
    """Every tensor of the model is there, under its name, with the original's bytes."""
    main = {name for name in ORIGINAL if not name.startswith("mtp.")}
    assert main <= set(checkpoint.tensors) <= set(ORIGINAL)
    assert checkpoint.has_mtp == (set(checkpoint.tensors) == set(ORIGINAL))
    assert checkpoint.has_mtp or checkpoint.unused
    changed = 0
    for name, ref in checkpoint.tensors.items():
        assert (ref.dtype, ref.shape) == (ORIGINAL[name].dtype, ORIGINAL[name].shape)
        changed += checkpoint.array(name).tobytes() != ORIGINAL[name].data
    assert changed == data_changed
    assert config_from_json(checkpoint.config.to_json(), where="") == checkpoint.config


def assert_well_said(error: Ds4Error) -> None:
    text = str(error)
    assert error.what
    assert error.where
    assert error.found
    assert len(text) < 3000
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", text)
    text.encode()


def test_the_mutations_reach_both_ends(tmp_path: Path) -> None:
    """Most damage is refused; a share of it is harmless, or the test above would prove little."""
    refused = 0
    for name, mutate in MUTATIONS.items():
        folder = copy_of("tiny-a", tmp_path / name)
        mutate(folder, Random(name))
        try:
            open_checkpoint(folder)
        except Ds4Error:
            refused += 1
    assert 0.6 * len(MUTATIONS) < refused < len(MUTATIONS)
