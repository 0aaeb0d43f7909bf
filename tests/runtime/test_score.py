"""`score` on ONNX Runtime against the released model code, float32: chunks, MTP, ragged batches, used slots.

Largest absolute error measured over all chunkings (logits have deviation 2; the bound is that of the vectors):
tiny-a 1.3e-5, MTP 1.3e-5; tiny-c 3.2e-5, MTP 2.8e-5; tiny-base 1.0e-5, MTP 1.3e-5.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from ds4export.errors import CapacityError, Ds4Error, RuntimeInputError
from ds4export.runtime.onnx_runner import OnnxRunner
from ds4export.runtime.score import Scores, score
from tests.kit.artefacts import exported, open_runner, shared_runner
from tests.kit.compare import assert_within
from tests.kit.vectors import SETS, Golden, float32_vectors

BOUND = 1e-4
# A row beside others is summed in another order than alone. Measured: 1.9e-5.
ALONE = 5e-5


def fill(runner: OnnxRunner, value: float) -> None:
    for array in runner.state.values():
        array[:] = value


def close(got: NDArray[Any], want: NDArray[Any] | torch.Tensor, bound: float, what: str) -> float:
    return assert_within(torch.from_numpy(got), torch.as_tensor(want), bound, what)


def check(golden: Golden, scores: Scores) -> None:
    """Every recorded position of both rows."""
    close(scores.logits, golden.joined("logits"), BOUND, "logits")
    recorded = golden.joined("mtp.logits")
    # MTP at the last position would need an id that `score` does not have.
    known = min(recorded.shape[1], golden.ids.shape[1] - 1)
    assert scores.mtp is not None
    close(scores.mtp[:, :known], recorded[:, :known], BOUND, "MTP logits")
    assert np.isnan(scores.mtp[:, -1]).all()


@pytest.mark.parametrize("chunk", [None, 1, 7, 16, 64])
@pytest.mark.parametrize("name", SETS)
def test_prefill_in_any_chunks_then_single_steps(name: str, chunk: int | None) -> None:
    golden, runner = float32_vectors(name), shared_runner(name)
    fill(runner, np.nan)
    ids = golden.ids.numpy()
    check(golden, score(runner, ids, prefill=golden.prompt, chunk=chunk, with_mtp=True))


@pytest.mark.parametrize("name", SETS)
def test_ragged_rows_in_used_slots_give_what_each_gives_alone(name: str, rng: Any) -> None:
    golden, runner = float32_vectors(name), shared_runner(name)
    tokens, prompt = golden.ids.shape[1], golden.prompt
    fill(runner, np.nan)
    others = rng.integers(0, runner.limits.vocab_size, (4, prompt))
    score(runner, others, prefill=prompt, chunk=61, with_mtp=True)
    rows, slots = [1, 0, 1, 0], np.array([2, 0, 3, 1])
    lengths = np.array([tokens, prompt // 2 + 3, 1, 0])
    ids = golden.ids.numpy()[rows].copy()
    ids[np.arange(tokens) >= lengths[:, None]] = -1  # padding is not looked at
    together = score(
        runner, ids, prefill=prompt - 9, chunk=23, lengths=lengths, slots=slots, with_mtp=True
    )
    assert together.mtp is not None
    expected = golden.joined("logits")[rows].clone()
    for row, length in enumerate(lengths):
        expected[row, length:] = torch.nan
        if not length:
            continue
        fill(runner, np.nan)
        one = ids[row : row + 1, :length]
        alone = score(runner, one, prefill=length, chunk=40, with_mtp=True)
        assert alone.mtp is not None
        close(together.logits[row, :length], alone.logits[0], ALONE, f"row {row}")
        close(together.mtp[row, :length], alone.mtp[0], ALONE, f"MTP of row {row}")
    close(together.logits, expected, BOUND, "ragged logits")


def test_without_prefill_every_token_is_a_step() -> None:
    golden, runner = float32_vectors("tiny-base"), shared_runner("tiny-base")
    ids = golden.ids.numpy()[:, :6].astype(np.int32)
    got = score(runner, ids, prefill=0)
    close(got.logits, golden.joined("logits")[:, :6], BOUND, "logits")
    assert got.mtp is None


def test_lengths_of_any_integer_type_and_progress() -> None:
    runner = shared_runner("tiny-base")
    seen: list[int] = []
    ids = np.ones((2, 9), np.int64)
    lengths = np.array([3, 9], np.uint8)
    got = score(runner, ids, prefill=6, chunk=4, lengths=lengths, advance=seen.append)
    assert seen == [4, 2, 1, 1, 1]
    assert np.isnan(got.logits[0, 3:]).all()
    assert np.isfinite(got.logits[0, :3]).all()


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a vector": ({"ids": np.ones(3, np.int64)}, "ids are not a table of token ids"),
    "no rows": ({"ids": np.ones((0, 3), np.int64)}, "ids are not a table of token ids"),
    "floats": ({"ids": np.ones((1, 3))}, "ids are not a table of token ids"),
    "large id": ({"ids": np.full((1, 3), 512)}, "`ids` is out of range"),
    "prefill beyond": ({"prefill": 10}, "--prefill is out of range"),
    "negative prefill": ({"prefill": -1}, "--prefill is out of range"),
    "chunk of none": ({"chunk": 0}, "--chunk is out of range"),
    "long length": ({"lengths": np.array([10])}, "lengths do not fit ids"),
    "negative length": ({"lengths": np.array([-1])}, "lengths do not fit ids"),
    "lengths of text": ({"lengths": np.array(["a"])}, "lengths do not fit ids"),
    "two lengths": ({"lengths": np.array([1, 2])}, "lengths do not fit ids"),
    "more tokens than fit": ({"ids": np.ones((1, 513), np.int64)}, "the ids do not fit the cache"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(case: str) -> None:
    change, text = REFUSED[case]
    arguments = {"ids": np.ones((1, 9), np.int64), "prefill": 3, **change}
    with pytest.raises(Ds4Error, match="^" + text) as caught:
        score(shared_runner("tiny-a"), **arguments)
    assert caught.value.found
    assert caught.value.expected


def test_a_range_without_the_head_has_nothing_to_score() -> None:
    runner = open_runner(exported("tiny-a", layers=(0, 2)))
    ids = np.ones((1, 3), np.int64)
    with pytest.raises(RuntimeInputError, match="no logits to write"):
        score(runner, ids, prefill=3)
    with pytest.raises(RuntimeInputError, match="the artefact has no MTP graph"):
        score(runner, ids, prefill=3, with_mtp=True)


def test_capacity_is_checked_before_the_first_step() -> None:
    runner = shared_runner("tiny-base")
    before = {name: array.tobytes() for name, array in runner.state.items()}
    small = runner.limits
    runner.limits = replace(small, max_context=8)
    try:
        with pytest.raises(CapacityError, match="the ids do not fit the cache"):
            score(runner, np.ones((1, 9), np.int64), prefill=4)
    finally:
        runner.limits = small
    assert before == {name: array.tobytes() for name, array in runner.state.items()}
