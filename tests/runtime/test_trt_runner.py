"""The TensorRT runner on stand-ins for libcudart and TensorRT: every bit as the same graph walked on torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from ds4export.engine.profile import StepShape
from ds4export.errors import CapacityError, RuntimeInputError, ToolchainError
from tests.runtime.trt_kit import Bench, assert_same_bits, assert_same_state, bench, step_of


@pytest.fixture
def made() -> Iterator[Bench]:
    it = bench("nano")
    yield it
    it.close()


def ids(rng: np.random.Generator, batch: int, tokens: int) -> np.ndarray:
    return rng.integers(0, 1024, (batch, tokens))


def logits_of(result: Any) -> np.ndarray:
    assert result.logits is not None
    return result.logits


def same_step(made: Bench, inputs: Any) -> None:
    got, want = made.runner.step(inputs), made.torch.step(inputs)
    wanted = inputs.logit_rows >= 0
    assert_same_bits(logits_of(got)[wanted], logits_of(want)[wanted])
    assert_same_bits(made.runner.read_streams(got.streams), want.streams)


def test_steps_agree_to_the_bit(made: Bench, rng: np.random.Generator) -> None:
    """Prefill of two sequences, ragged, then decode of three: logits, streams and every cache."""
    same_step(made, step_of(made.runner, ids(rng, 2, 6), [2, 0], [0, 0], num_new=[6, 3]))
    assert_same_state(made)
    same_step(made, step_of(made.runner, ids(rng, 3, 1), [1, 0, 2], [0, 3, 6]))
    same_step(made, step_of(made.runner, ids(rng, 1, 5), [0], [4]))
    assert_same_state(made)


def test_mtp_agrees_and_reads_the_streams_where_they_lie(
    made: Bench, rng: np.random.Generator
) -> None:
    inputs = step_of(made.runner, ids(rng, 2, 6), [2, 0], [0, 0], num_new=[6, 4])
    got, want = made.runner.step(inputs), made.torch.step(inputs)
    following = step_of(made.runner, ids(rng, 2, 6), [2, 0], [0, 0], num_new=[6, 4])
    mtp = made.runner.mtp_step(following, got.streams).logits
    np.testing.assert_array_equal(mtp, made.torch.mtp_step(following, want.streams).logits)
    assert_same_state(made)


def test_a_long_step_is_cut_and_carries_its_state(made: Bench, rng: np.random.Generator) -> None:
    """Three sequences of 15 tokens through profiles of two sequences and six tokens, with MTP after it."""
    table, following = ids(rng, 3, 15), ids(rng, 3, 15)
    counts = [15, 7, 0]
    inputs = step_of(made.runner, table, [2, 0, 1], [0, 0, 0], num_new=counts)
    got = made.runner.step(inputs)
    next_inputs = step_of(made.runner, following, [2, 0, 1], [0, 0, 0], num_new=counts)
    mtp = logits_of(made.runner.mtp_step(next_inputs, got.streams))
    streams = made.runner.read_streams(got.streams)
    for rows in (slice(0, 2), slice(2, 3)):
        for at in range(0, 15, 6):
            cut = slice(at, min(at + 6, 15))
            width = cut.stop - at
            chosen = [2, 0, 1][rows]
            arguments = {
                "positions": [min(at, n) for n in counts[rows]],
                "num_new": [int(np.clip(n - at, 0, width)) for n in counts[rows]],
                "logit_rows": [[n - 1 - at if at < n <= cut.stop else -1] for n in counts[rows]],
            }
            part = step_of(made.torch, table[rows, cut], chosen, **arguments)
            want = made.torch.step(part)
            assert_same_bits(streams[rows, cut], want.streams)
            part_mtp = step_of(made.torch, following[rows, cut], chosen, **arguments)
            want_mtp = made.torch.mtp_step(part_mtp, want.streams)
            for b, n in enumerate(counts[rows]):
                if at < n <= cut.stop:
                    row = rows.start + b
                    np.testing.assert_array_equal(logits_of(got)[row, 0], logits_of(want)[b, 0])
                    np.testing.assert_array_equal(mtp[row, 0], logits_of(want_mtp)[b, 0])
    assert np.isnan(logits_of(got)[2]).all()
    assert_same_state(made)


def test_more_rows_of_logits_than_a_profile_has(made: Bench, rng: np.random.Generator) -> None:
    """All five rows are asked for, in no order and one twice; the engine gives one a step."""
    table = ids(rng, 1, 5)
    inputs = step_of(made.runner, table, [1], [0], logit_rows=[[4, 0, 2, -1, 0, 3, 1]])
    logits = logits_of(made.runner.step(inputs))[0]
    for token in range(5):
        part = step_of(made.torch, table[:, token : token + 1], [1], [token])
        want = logits_of(made.torch.step(part))[0, 0]
        for column, row in enumerate([4, 0, 2, -1, 0, 3, 1]):
            if row == token:
                np.testing.assert_array_equal(logits[column], want)
    assert np.isnan(logits[3]).all()
    assert_same_state(made)


def test_decode_is_recorded_for_each_batch_size_and_launched_from_then_on(
    made: Bench, rng: np.random.Generator
) -> None:
    """The first step of a size runs, the second records, later ones enqueue nothing; all of them compute."""
    context = made.trt.IExecutionContext
    same_step(made, step_of(made.runner, ids(rng, 2, 4), [0, 1], [0, 0]))
    enqueued = []
    for number in range(4):
        for slots in ([0], [1, 0]):
            positions = [made_positions(number, s, len(slots)) for s in slots]
            same_step(made, step_of(made.runner, ids(rng, len(slots), 1), slots, positions))
            enqueued.append(context.enqueues)
    assert made.runner.num_recorded == 2
    assert enqueued == [2, 3, 4, 5, 5, 5, 5, 5]
    assert context.runs == 9
    assert_same_state(made)


def made_positions(number: int, slot: int, batch: int) -> int:
    """Slot 0 decodes in both batch sizes of a round, slot 1 in the second alone."""
    return 4 + number if slot == 1 else 4 + 2 * number + (batch == 2)


def test_a_capture_that_tensorrt_refuses_is_told_once_and_steps_go_on(
    made: Bench, rng: np.random.Generator
) -> None:
    made.trt.IExecutionContext.capturable = False
    same_step(made, step_of(made.runner, ids(rng, 1, 1), [0], [0]))
    with pytest.warns(
        RuntimeWarning, match="decode steps of graph `main` run without a CUDA graph"
    ):
        same_step(made, step_of(made.runner, ids(rng, 1, 1), [0], [1]))
    same_step(made, step_of(made.runner, ids(rng, 1, 1), [0], [2]))
    assert made.runner.num_recorded == 0
    assert_same_state(made)


def test_a_call_that_no_capture_can_hold(
    made: Bench, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plugin that allocates while it is recorded loses the capture; the step runs without."""
    execute = made.trt.IExecutionContext.execute_async_v3
    device = made.runner._device

    def allocates(context: Any, stream: int) -> bool:
        address = device.allocate(16)
        device.release(address)
        return execute(context, stream)

    same_step(made, step_of(made.runner, ids(rng, 1, 1), [0], [0]))
    monkeypatch.setattr(made.trt.IExecutionContext, "execute_async_v3", allocates)
    with pytest.warns(RuntimeWarning, match="not permitted when stream is capturing"):
        same_step(made, step_of(made.runner, ids(rng, 1, 1), [0], [1]))
    same_step(made, step_of(made.runner, ids(rng, 1, 1), [0], [2]))
    assert_same_state(made)


def test_a_plan_that_fails_while_it_runs(made: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(made.trt.IExecutionContext, "execute_async_v3", lambda *_: False)
    with pytest.raises(ToolchainError, match="TensorRT cannot run the step") as caught:
        made.runner.step(step_of(made.runner, [[1]], [0], [0]))
    assert "graph `main`" in caught.value.where


def test_a_range_of_layers_takes_streams_and_gives_them(rng: np.random.Generator) -> None:
    """Layers 0:2 and 2:4 in two runners, streams handed over on the device, against the whole."""
    first, second, whole = bench("nano", layers=(0, 2)), bench("nano", layers=(2, 4)), bench("nano")
    for tokens, position in ((6, 0), (1, 6), (13, 7)):
        table = ids(rng, 1, tokens)
        inputs = step_of(whole.runner, table, [1], [position])
        middle = first.runner.step(inputs)
        assert middle.logits is None
        got = second.runner.step(inputs, streams_in=middle.streams)
        want = whole.runner.step(inputs)
        np.testing.assert_array_equal(got.logits, want.logits)
    array = first.runner.read_streams(middle.streams)
    again = second.runner.step(inputs, streams_in=array)
    assert logits_of(again).shape == logits_of(got).shape
    for made in (first, second, whole):
        made.close()


def test_streams_are_refused_when_missing_foreign_or_overwritten(made: Bench) -> None:
    inputs = step_of(made.runner, [[1, 2]], [0], [0])
    old = made.runner.step(inputs).streams
    with pytest.raises(RuntimeInputError, match="begins with the first layer"):
        made.runner.step(inputs, streams_in=old)
    new = made.runner.step(step_of(made.runner, [[1, 2, 3]], [1], [0])).streams
    with pytest.raises(RuntimeInputError, match="overwritten by a later step") as caught:
        made.runner.mtp_step(inputs, old)
    assert "those of step 1; the last one was 2" in caught.value.found
    with pytest.raises(RuntimeInputError, match="not of this step") as caught:
        made.runner.mtp_step(inputs, new)
    assert (caught.value.found, caught.value.expected) == (
        "BFLOAT16 [1, 3, 4, 128]",
        "BFLOAT16 [1, 2, 4, 128]",
    )
    with pytest.raises(RuntimeInputError, match="streams of the layers before are missing"):
        made.runner.mtp_step(inputs, None)


def test_without_logits_nothing_is_copied_back(
    made: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The state advances all the same."""
    device: Any = made.runner._device
    copies, copy_out = [], device.copy_out

    def counted(array: Any, address: int) -> None:
        copies.append(address)
        copy_out(array, address)

    monkeypatch.setattr(device, "copy_out", counted)
    inputs = step_of(made.runner, [[5, 6, 7]], [0], [0])
    assert made.runner.step(inputs, want_logits=False).logits is None
    assert not copies
    made.torch.step(inputs.without_logits())
    monkeypatch.undo()
    assert_same_state(made)


def test_a_step_that_no_profile_holds(rng: np.random.Generator) -> None:
    """An engine for decode alone, of two sequences at least."""
    made = bench("nano", steps={"decode": StepShape((2, 2, 3), (1, 1, 1))})
    with pytest.raises(CapacityError, match="built for no step like this") as caught:
        made.runner.step(step_of(made.runner, ids(rng, 1, 1), [0], [0]))
    assert caught.value.found == "batch 1, tokens 1, logit_rows 1"
    assert "decode: batch 2 to 3, tokens 1 to 1" in caught.value.expected
    made.close()


def test_slots_can_be_written_and_read(made: Bench, rng: np.random.Generator) -> None:
    name = "state.layers.1.pending"
    before = made.runner.read_state(name)
    assert np.isnan(before).all()
    rows = rng.standard_normal(before.shape[1:], np.float32)
    made.runner.write_state(name, 1, rows)
    after = made.runner.read_state(name)
    np.testing.assert_array_equal(after[1], rows)
    assert np.isnan(after[[0, 2]]).all()


def test_a_closed_runner_has_given_everything_back(made: Bench) -> None:
    device = made.runner._device
    made.runner.step(step_of(made.runner, [list(range(20))], [0], [0]))
    assert device.free_bytes() < device.facts.total_bytes
    made.runner.close()
    made.runner.close()
    assert device.free_bytes() == device.facts.total_bytes
    with pytest.raises(RuntimeInputError, match="the model is closed"):
        made.runner.step(step_of(made.runner, [[1]], [0], [0]))
