"""Float32 numerics end to end: the recorded logits, whatever the chunks, the batch and the old state."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from ds4export.model import Transformer
from tests.kit.compare import assert_within
from tests.kit.models import model_pool, one_row, recorded_model, run_chunks
from tests.kit.vectors import SETS, float32_vectors

# Measured, largest absolute error of logits of standard deviation 2, prefill / decode / MTP:
#   tiny-a 1.3e-5 / 1.2e-5 / 1.2e-5, tiny-c 3.0e-5 / 2.5e-5 / 2.3e-5, tiny-base 1.2e-5 / 8.1e-6 / 1.2e-5.
BOUND = 1e-4
# Two runs of ours may each be that far from the truth.
APART = 5e-5


def chunked(prompt: int, total: int, size: int) -> list[int]:
    """Chunks of `size` through the prompt, then one token at a time."""
    sizes = [min(size, prompt - p) for p in range(0, prompt, size)]
    return sizes + [1] * (total - prompt)


def golden(set_name: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """ids, next ids, logits, MTP logits (of the positions that have them) of both rows."""
    g = float32_vectors(set_name)
    return g.ids, g.next_ids, g.joined("logits"), g.joined("mtp.logits")


def assert_golden(set_name: str, logits: Tensor, mtp: Tensor, rows: Sequence[int]) -> None:
    _, _, want, want_mtp = golden(set_name)
    prompt, known = float32_vectors(set_name).prompt, want_mtp.shape[1]
    rows = list(rows)
    errors = {
        "prefill": assert_within(logits[:, :prompt], want[rows, :prompt], BOUND, "prefill"),
        "decode": assert_within(logits[:, prompt:], want[rows, prompt:], BOUND, "decode"),
        "MTP": assert_within(mtp[:, :known], want_mtp[rows], BOUND, "MTP"),
    }
    print(f"{set_name}: " + ", ".join(f"{name} {error:.1e}" for name, error in errors.items()))


def sets_and_sizes() -> list[object]:
    """One token at a time takes ten seconds and more: by default tiny-a alone."""
    sizes = (1, 7, 16, 64, 1000)
    return [
        pytest.param(n, size, marks=pytest.mark.slow if size == 1 and n != "tiny-a" else [])
        for n in SETS
        for size in sizes
    ]


@pytest.mark.parametrize(("set_name", "size"), sets_and_sizes())
def test_logits_in_chunks_on_nan_filled_state(set_name: str, size: int) -> None:
    model, (ids, next_ids, _, _) = recorded_model(set_name, official=False), golden(set_name)
    sizes = chunked(float32_vectors(set_name).prompt, ids.shape[1], size)
    state = model_pool(model, slots=3)
    logits, mtp = run_chunks(model, ids, next_ids, [sizes, sizes], state, slots=[2, 0])
    assert_golden(set_name, logits, mtp, [0, 1])


# Rows at different positions, some calls without new tokens for one of them.
RAGGED = {
    0: [3, 1, 5, 16, 17, 2, 0, 40, 33, 1, 0, 0, 1],
    1: [130, 1, 1, 0, 1, 2, 0, 1, 1, 1, 3, 0, 1],
}


def ragged(row: int, total: int) -> list[int]:
    """The row's chunks, with the rest of the sequence in one."""
    sizes = RAGGED[row]
    return [*sizes, total - sum(sizes)]


@pytest.mark.parametrize("set_name", SETS)
def test_ragged_rows_give_what_each_gives_alone(set_name: str) -> None:
    model, (ids, next_ids, _, _) = recorded_model(set_name, official=False), golden(set_name)
    total = ids.shape[1]
    chunks = [ragged(0, total), ragged(1, total)]
    together = run_chunks(model, ids, next_ids, chunks, model_pool(model, slots=2), slots=[1, 0])
    assert_golden(set_name, *together, rows=[0, 1])
    for row in (0, 1):
        part = slice(row, row + 1)
        alone = run_chunks(
            model, ids[part], next_ids[part], [[total]], model_pool(model), slots=[0]
        )
        for got, want in zip(together, alone, strict=True):
            assert_within(got[part], want, APART, f"row {row}")


@pytest.mark.parametrize("set_name", SETS)
def test_a_slot_remembers_nothing_of_the_sequence_before(set_name: str) -> None:
    """The state another sequence left is overwritten or masked, and so is that of neighbours."""
    model, (ids, next_ids, _, _) = recorded_model(set_name, official=False), golden(set_name)
    total, state = ids.shape[1], model_pool(model, slots=3)
    other = torch.randint(0, model.config.vocab_size, (3, 200))
    run_chunks(model, other, other, [[200], [131], [77]], state, slots=[0, 1, 2])
    first = ids[:1]
    logits, mtp = run_chunks(model, first, next_ids[:1], [[5, total - 5]], state, slots=[1])
    assert_golden(set_name, logits, mtp, [0])


def test_two_sequences_interleave_in_one_pool() -> None:
    """A decode of one sequence between the chunks of another's prefill."""
    model, (ids, _next_ids, _, _) = recorded_model("tiny-c", official=False), golden("tiny-c")
    state = model_pool(model, slots=4)
    made: dict[int, list[Tensor]] = {0: [], 1: []}
    position = {0: 0, 1: 0}
    for row, size in ((0, 249), (1, 100), (0, 1), (1, 3), (0, 1), (0, 1), (1, 150), (0, 5)):
        begin, end = position[row], position[row] + size
        made[row].append(run_from(model, ids[row : row + 1, begin:end], begin, row + 1, state))
        position[row] = end
    want = float32_vectors("tiny-c").joined("logits")
    for row, parts in made.items():
        got = torch.cat(parts, 1)
        assert_within(got, want[row : row + 1, : got.shape[1]], BOUND, f"row {row}")


def run_from(
    model: Transformer, ids: Tensor, position: int, slot: int, state: dict[str, Tensor]
) -> Tensor:
    """Logits of one chunk of one sequence; `state` is updated."""
    x, new = model(ids, one_row(position, ids.shape[1], slot), state)
    state |= new
    return model.logits(x, torch.arange(ids.shape[1])[None], model.head.weight)


@pytest.mark.parametrize("set_name", SETS)
def test_drafts_are_undone(set_name: str) -> None:
    """Three spare rows: up to four wrong tokens before each decoded one leave no trace."""
    model, (ids, _next_ids, want, _) = recorded_model(set_name, official=False), golden(set_name)
    prompt, spare = float32_vectors(set_name).prompt, 3
    state = model_pool(model, spare=spare)
    run_from(model, ids[:1, :prompt], 0, 0, state)
    for p in range(prompt, ids.shape[1]):
        wrong = torch.randint(0, model.config.vocab_size, (1, 1 + p % (spare + 1)))
        run_from(model, wrong, p, 0, state)
        got = run_from(model, ids[:1, p : p + 1], p, 0, state)
        assert_within(got, want[:1, p : p + 1], BOUND, f"position {p}")


def test_logits_of_chosen_rows() -> None:
    model, (ids, _, want, _) = recorded_model("tiny-a", official=False), golden("tiny-a")
    x, _ = model(ids[:1, :20], one_row(0, 20), model_pool(model))
    rows = torch.tensor([[19, 3, -1]])
    got = model.logits(x, rows, model.head.weight)
    assert_within(got[:, :2], want[:1, [19, 3]], BOUND)
