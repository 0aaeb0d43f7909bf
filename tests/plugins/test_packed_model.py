"""A whole model on packed caches: what it says is, bit by bit, what it says on native ones.

Compiles the host of the library first where that has not been done: minutes.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from ds4export.artefact import open_artefact_folder
from ds4export.engine.cache_layout import LAYOUTS
from ds4export.errors import ToolchainError
from ds4export.ops._packed import packed
from ds4export.parity.backends import check_backend
from ds4export.parity.host_backend import NAME, HostBackend, HostEndToEnd
from ds4export.parity.metrics import equal_bits
from ds4export.parity.subject import Subject
from ds4export.runtime.runner import StepInputs
from ds4export.state import PACKED_STATE, packed_row_bytes
from tests.kit.artefacts import exported
from tests.plugins.host import torch_from

pytestmark = pytest.mark.slow
# Two sequences: a first chunk past the window and a block of 128, one that passes a block of 4, then decode.
CHUNKS = ((140, 131), (7, 3), (1, 1), (1, 1))
SLOTS = (2, 0)
ROPE_DIMS = 64


@pytest.fixture(scope="module")
def backends() -> Iterator[list[HostBackend]]:
    """Over native rows and over packed ones."""
    subject = Subject(open_artefact_folder(artefact()))
    try:
        check_backend(NAME)
        opened = [HostBackend(subject, cache) for cache in LAYOUTS]
    except ToolchainError as error:
        pytest.skip(f"{error.what}: {error.found}")
    yield opened
    for backend in opened:
        backend.close()


def artefact() -> Path:
    return exported("tiny-a", official=True)


def logits(run: HostEndToEnd, vocabulary: int) -> list[np.ndarray]:
    rng, found, positions = np.random.default_rng(5), [], np.zeros(2, np.int64)
    for chunk in CHUNKS:
        num_new = np.array(chunk)
        ids = rng.integers(0, vocabulary, (2, max(chunk)))
        rows = np.stack([num_new - 1, num_new // 2], 1)
        step = StepInputs.checked(
            run.limits, ids, slots=SLOTS, positions=positions, num_new=num_new, logit_rows=rows
        )
        made = run.step(step).logits
        assert made is not None
        assert np.isfinite(made).all()
        found.append(made)
        positions = positions + num_new
    return found


def test_logits_and_state_are_those_of_native_rows(backends: list[HostBackend]) -> None:
    vocabulary = backends[0].subject.manifest.config.vocab_size
    native, packed_run = (backend.open(num_slots=3, max_context=400) for backend in backends)
    want, got = logits(native, vocabulary), logits(packed_run, vocabulary)
    for step, (a, b) in enumerate(zip(got, want, strict=True)):
        np.testing.assert_array_equal(a.view(np.int32), b.view(np.int32), err_msg=f"step {step}")
    checked = 0
    for name, buffer in packed_run.state.items():
        kind, rows = PACKED_STATE.get(name.rsplit(".", 1)[-1]), native.read_state(name)
        seen = packed_run.read_state(name)
        assert seen.dtype == rows.dtype
        assert equal_bits(seen, rows)[:, :-1].all(), name  # the last row is scratch
        if kind is None:
            np.testing.assert_array_equal(buffer.array, rows, err_msg=name)
            continue
        assert buffer.array.shape[-1] == packed_row_bytes(kind, rows.shape[-1], ROPE_DIMS)
        before = torch_from(rows)
        written = ~torch.isnan(before).any(-1)
        ran = not name.startswith("state.mtp.")  # its graph does not run
        assert bool(written.any()) is ran, name
        bytes_of_rows = torch.from_numpy(buffer.array.copy())
        assert torch.equal(bytes_of_rows[written], packed(before[written], kind, ROPE_DIMS)), name
        assert bool((bytes_of_rows[~written] == -1).all()), name
        checked += int(written.sum())
    assert checked > 300
