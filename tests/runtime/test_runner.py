"""One step: what is refused before anything is written, and the caches that stay where they are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from ds4export.artefact import open_artefact_folder
from ds4export.errors import ArtefactError, CapacityError, Ds4Error, RuntimeInputError
from ds4export.runtime import open_artefact
from ds4export.runtime.kv_cache import allocate_state, state_specs
from ds4export.runtime.onnx_runner import OnnxRunner
from ds4export.runtime.ort_values import numpy_value
from ds4export.runtime.runner import Limits, StepInputs
from tests.kit.artefacts import exported, open_runner, shared_runner

LIMITS = Limits(vocab_size=100, num_slots=4, max_context=50)
GOOD: dict[str, Any] = {"ids": [[1, 2, 3], [4, 5, 6]], "slots": [0, 2], "positions": [0, 47]}

REFUSED: dict[str, tuple[dict[str, Any], type[Ds4Error], str]] = {
    "ids of one axis": ({"ids": [1, 2]}, RuntimeInputError, "`ids` is not an array of integers"),
    "ids of floats": ({"ids": [[1.0]]}, RuntimeInputError, "`ids` is not an array of integers"),
    "ids of text": ({"ids": [["a"]]}, RuntimeInputError, "`ids` is not an array of integers"),
    "ragged ids": ({"ids": [[1, 2], [3]]}, RuntimeInputError, "`ids` is not an array"),
    "no ids": ({"ids": np.ones((0, 3), np.int64)}, RuntimeInputError, "`ids` are empty"),
    "no tokens": ({"ids": np.ones((2, 0), np.int64)}, RuntimeInputError, "`ids` are empty"),
    "slots of a table": ({"slots": [[0, 1]]}, RuntimeInputError, "`slots` is not an array of int"),
    "slots for one": ({"slots": [0]}, RuntimeInputError, "`slots` has another batch size"),
    "positions for three": ({"positions": [0, 0, 0]}, RuntimeInputError, "`positions` has another"),
    "num_new for one": ({"num_new": [1]}, RuntimeInputError, "`num_new` has another batch size"),
    "rows for one": ({"logit_rows": [[0]]}, RuntimeInputError, "`logit_rows` has another batch"),
    "rows of none": ({"logit_rows": np.ones((2, 0), np.int64)}, RuntimeInputError, "`logit_rows` is e"),
    "an id too large": ({"ids": [[1], [100]]}, RuntimeInputError, "`ids` is out of range"),
    "an id below zero": ({"ids": [[1], [-1]]}, RuntimeInputError, "`ids` is out of range"),
    "an id that wraps": ({"ids": np.full((2, 1), 1 << 63, np.uint64)}, RuntimeInputError, "`ids` is out"),
    "a slot too large": ({"slots": [0, 4]}, RuntimeInputError, "`slots` is out of range"),
    "a slot below zero": ({"slots": [0, -1]}, RuntimeInputError, "`slots` is out of range"),
    "a slot twice": ({"slots": [2, 2]}, RuntimeInputError, "two rows share a slot"),
    "too many new": ({"num_new": [4, 3]}, RuntimeInputError, "`num_new` is out of range"),
    "less than none new": ({"num_new": [-1, 3]}, RuntimeInputError, "`num_new` is out of range"),
    "a row beyond": ({"logit_rows": [[3], [0]]}, RuntimeInputError, "`logit_rows` is out of range"),
    "a row below": ({"logit_rows": [[-2], [0]]}, RuntimeInputError, "`logit_rows` is out of range"),
    "before the start": ({"positions": [0, -1]}, RuntimeInputError, "a position is negative"),
    "one too many": ({"positions": [0, 48]}, CapacityError, "the sequence does not fit the cache"),
    "far beyond": ({"positions": [(1 << 63) - 1, 0]}, CapacityError, "the sequence does not fit"),
}  # fmt: skip


def checked(**change: Any) -> StepInputs:
    arguments = GOOD | change
    return StepInputs.checked(LIMITS, arguments.pop("ids"), **arguments)


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_of_a_step(case: str) -> None:
    change, kind, text = REFUSED[case]
    with pytest.raises(kind, match="^" + text) as caught:
        checked(**change)
    assert caught.value.found
    assert caught.value.expected


def test_a_capacity_error_names_row_and_slot() -> None:
    with pytest.raises(CapacityError) as caught:
        checked(positions=[0, 48])
    assert str(caught.value).splitlines() == [
        "the sequence does not fit the cache",
        "  where:    row 1, slot 2",
        "  found:    51 tokens",
        "  expected: at most 50 (max_context)",
        "",
        "hint: open the artefact with a larger max_context, or shorten the prompt",
    ]


def test_what_a_step_takes_by_default() -> None:
    step = checked(num_new=[3, 0])
    assert step.logit_rows.tolist() == [[2], [-1]]
    assert checked().num_new.tolist() == [3, 3]
    assert checked(ids=np.ones((2, 2), np.uint8)).ids.dtype == np.int64


@pytest.fixture(scope="module")
def runner() -> Iterator[OnnxRunner]:
    made = open_runner(exported("tiny-a"), slots=3, context=64)
    yield made
    made.close()


def contents(runner: OnnxRunner) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in runner.state.items()}


def step(runner: OnnxRunner, tokens: int, position: int, slot: int = 0) -> StepInputs:
    ids = np.arange(tokens)[None] + position
    return StepInputs.checked(runner.limits, ids, slots=[slot], positions=[position])


def test_a_refused_step_writes_nothing(runner: OnnxRunner) -> None:
    """Layers write in order, so a check that came late would have changed the first ones."""
    runner.step(step(runner, 60, 0))
    before = contents(runner)
    with pytest.raises(CapacityError):
        step(runner, 5, 60)
    assert contents(runner) == before
    runner.step(step(runner, 4, 60))
    assert contents(runner) != before


def test_caches_are_updated_in_place(runner: OnnxRunner) -> None:
    """Buffers keep their addresses, every cache output is its input's buffer, and other slots keep every byte."""
    addresses = {name: array.ctypes.data for name, array in runner.state.items()}
    for position in (0, 7, 8):
        before = {name: array.copy() for name, array in runner.state.items()}
        inputs = step(runner, 7 if position == 0 else 1, position, slot=1)
        result = runner.step(inputs)
        runner.mtp_step(inputs, result.streams)
        for name, array in runner.state.items():
            np.testing.assert_array_equal(array[[0, 2]], before[name][[0, 2]])
        changed = {n for n, a in runner.state.items() if a.tobytes() != before[n].tobytes()}
        assert changed >= {n for n in addresses if n.endswith(("window", "pending"))}
    assert {name: array.ctypes.data for name, array in runner.state.items()} == addresses
    for graph in runner._graphs.values():
        outputs = [i.name for i in graph.session.get_outputs() if i.name.startswith("state.")]
        for binding in graph._bindings.values():
            bound = binding.get_outputs()[: len(outputs)]
            assert {v.data_ptr() for v in bound} == {
                addresses[n.removesuffix("_out")] for n in outputs
            }


def test_logits_that_nobody_wants_are_not_returned_and_change_nothing(runner: OnnxRunner) -> None:
    for array in runner.state.values():
        array[:] = np.nan
    without = runner.step(step(runner, 9, 0, slot=0), want_logits=False)
    with_logits = runner.step(step(runner, 9, 0, slot=2))
    assert without.logits is None
    assert with_logits.logits is not None
    np.testing.assert_array_equal(numpy_value(without.streams), numpy_value(with_logits.streams))
    for name, array in runner.state.items():
        if name.startswith("state.layers."):
            np.testing.assert_array_equal(array[0], array[2], err_msg=name)
    again = runner.step(step(runner, 1, 9, slot=0)).logits
    np.testing.assert_array_equal(again, runner.step(step(runner, 1, 9, slot=2)).logits)


def test_results_of_a_step_outlive_the_next_one(runner: OnnxRunner) -> None:
    first = runner.step(step(runner, 9, 0))
    kept = first.logits.copy() if first.logits is not None else None
    streams = numpy_value(first.streams)
    runner.step(step(runner, 9, 9))
    np.testing.assert_array_equal(first.logits, kept)
    np.testing.assert_array_equal(numpy_value(first.streams), streams)


def test_rows_that_ask_for_no_logits_and_rows_without_tokens(runner: OnnxRunner) -> None:
    ids = np.ones((3, 4), np.int64)
    inputs = StepInputs.checked(
        runner.limits,
        ids,
        slots=[2, 0, 1],
        positions=[0, 0, 0],
        num_new=[4, 0, 2],
        logit_rows=[[3, 0], [-1, -1], [1, -1]],
    )
    before = {name: array[0, :-1].copy() for name, array in runner.state.items()}
    got = runner.step(inputs).logits
    assert got is not None
    assert got.shape == (3, 2, 512)
    for name, rows in before.items():  # the last row is scratch
        np.testing.assert_array_equal(runner.state[name][0, :-1], rows, err_msg=name)
    alone = StepInputs.checked(runner.limits, ids[:1], slots=[0], positions=[0])
    want = runner.step(alone).logits
    assert want is not None
    np.testing.assert_allclose(got[0, 0], want[0, 0], atol=5e-5, rtol=0)


def test_streams_must_fit_the_range_and_the_step() -> None:
    first, second = (open_runner(exported("tiny-a", layers=r)) for r in ((0, 2), (2, 5)))
    inputs = step(first, 3, 0)
    streams = first.step(inputs).streams
    with pytest.raises(RuntimeInputError, match="streams of the layers before are missing"):
        second.step(inputs)
    with pytest.raises(RuntimeInputError, match="given to a range that begins with the first"):
        first.step(inputs, streams_in=streams)
    with pytest.raises(RuntimeInputError, match="the streams are not of this step") as caught:
        second.step(step(second, 4, 0), streams_in=streams)
    assert caught.value.found == "tensor(float) [1, 3, 4, 256]"
    assert caught.value.expected == "tensor(float) [1, 4, 4, 256]"
    with pytest.raises(RuntimeInputError, match="the streams are not of this step"):
        second.step(inputs, streams_in=numpy_value(streams).astype(np.float64))
    got = second.step(inputs, streams_in=numpy_value(streams)).logits
    np.testing.assert_array_equal(got, second.step(inputs, streams_in=streams).logits)
    with pytest.raises(RuntimeInputError, match="the artefact has no mtp graph"):
        first.mtp_step(inputs, streams)
    with pytest.raises(RuntimeInputError, match="streams of the layers before are missing"):
        second.mtp_step(inputs, None)


def test_a_closed_model_says_so() -> None:
    model = open_artefact(exported("tiny-a", layers=(0, 1)), num_slots=1, max_context=8, threads=1)
    with model:
        model.step([[1]], slots=[0], positions=[0])
    with pytest.raises(RuntimeInputError, match="the model is closed"):
        model.step([[1]], slots=[0], positions=[0])


def test_official_and_float32_keep_their_caches_in_their_own_dtype() -> None:
    for official, expected in ((True, "bfloat16"), (False, "float32")):
        manifest = open_artefact_folder(exported("tiny-a", official=official)).manifest
        state = allocate_state(manifest, 2, 16)
        assert state["state.layers.1.window"].dtype == expected
        assert state["state.layers.1.pending"].dtype == "float32"
        assert state["state.mtp.0.window"].shape[0] == 2


def test_spare_rows_lengthen_the_rings_alone() -> None:
    manifest = open_artefact_folder(exported("tiny-a")).manifest
    plain, spare = (state_specs(manifest, 64, n) for n in (0, 3))
    longer = {n.rsplit(".", 1)[1] for n in plain if spare[n].rows == plain[n].rows + 3}
    assert longer == {"window", "pending", "index_pending"}


@pytest.mark.parametrize(
    ("options", "kind", "text"),
    [
        ({"max_context": 0}, RuntimeInputError, "max_context is out of range"),
        ({"max_context": 1 << 40}, RuntimeInputError, "max_context is out of range"),
        ({"num_slots": 0}, RuntimeInputError, "num_slots is out of range"),
        ({"num_slots": 1 << 50}, CapacityError, "the caches do not fit into memory"),
        ({"num_slots": 1 << 62}, CapacityError, "the caches do not fit into memory"),
    ],
)
def test_sizes_that_cannot_be_opened(options: dict, kind: type[Ds4Error], text: str) -> None:
    with pytest.raises(kind, match=text) as caught:
        open_artefact(exported("tiny-a", layers=(0, 1)), **options)
    assert caught.value.found
    assert caught.value.expected


def test_a_failure_inside_onnxruntime_is_typed() -> None:
    runner = shared_runner("tiny-a")
    beyond = replace(step(runner, 2, 0), slots=np.array([900]))  # past the checks
    with pytest.raises(ArtefactError, match="ONNX Runtime cannot run the graph") as caught:
        runner.step(beyond)
    assert "model.onnx" in caught.value.where
    assert "\n" not in caught.value.found
