"""ONNX Runtime with weights and caches as copies on a device: the stand-in's memory, which the CPU provider reads too.

What differs on a GPU is the provider alone; copies, bindings and the order of steps are those under test.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from ds4export.artefact import open_artefact_folder
from ds4export.errors import CapacityError, ToolchainError
from ds4export.parity.onnx_backend import OnnxBackend
from ds4export.parity.subject import Subject
from ds4export.runtime import ort_placement
from ds4export.runtime.onnx_runner import OnnxRunner
from ds4export.runtime.ort_placement import CPU, CUDA, HOST, Placement, open_cuda_placement
from tests.kit.artefacts import exported
from tests.runtime.trt_kit import assert_same_bits, open_device, step_of

SLOTS, CONTEXT = 3, 64


def on_stand_in() -> Placement:
    """Copies on a device, computed by the CPU provider: the stand-in's memory is the host's."""
    return Placement(device=open_device())


def runner(placement: Placement) -> OnnxRunner:
    artefact = open_artefact_folder(exported("nano", official=True))
    return OnnxRunner(
        artefact,
        num_slots=SLOTS,
        max_context=CONTEXT,
        threads=1,
        fill=np.nan,
        placement=placement,
    )


@pytest.fixture
def pair() -> Iterator[tuple[OnnxRunner, OnnxRunner]]:
    made = runner(on_stand_in()), runner(HOST)
    yield made
    for one in made:
        one.close()


def test_a_pool_on_a_device_computes_the_same(
    pair: tuple[OnnxRunner, OnnxRunner], rng: np.random.Generator
) -> None:
    """Prefill, decode and MTP, to the bit; then what is written to a slot is what the next step reads."""
    names = list(pair[1].state)
    for tokens, position in ((9, 0), (1, 9), (1, 10)):
        table = rng.integers(0, 1024, (2, tokens))
        got, want = (one.step(step_of(one, table, [2, 0], [position] * 2)) for one in pair)
        np.testing.assert_array_equal(got.logits, want.logits)
        assert_same_bits(pair[0].read_streams(got.streams), pair[1].read_streams(want.streams))
        inputs = step_of(pair[0], table, [2, 0], [position] * 2)
        got, want = pair[0].mtp_step(inputs, got.streams), pair[1].mtp_step(inputs, want.streams)
        np.testing.assert_array_equal(got.logits, want.logits)
    for name in names:
        assert_same_bits(pair[0].read_state(name), pair[1].read_state(name), name)
        rows = rng.standard_normal(pair[1].state[name].shape[1:], np.float32)
        for one in pair:
            one.write_state(name, 1, rows.astype(pair[1].state[name].dtype))
        assert_same_bits(pair[0].read_state(name), pair[1].read_state(name), name)
    results = [one.step(step_of(one, [[3]], [1], [20])) for one in pair]
    np.testing.assert_array_equal(results[0].logits, results[1].logits)


def test_caches_stay_where_they_are_and_weights_are_shared(
    pair: tuple[OnnxRunner, OnnxRunner],
) -> None:
    on_device: Any = pair[0]
    addresses = {n: v.data_ptr() for n, v in on_device._values.items()}
    result = on_device.step(step_of(on_device, [[1, 2, 3]], [0], [0]))
    assert on_device.state == {}
    for name, graph in on_device._graphs.items():
        states = [n for n in graph._values if n.startswith("state.")]
        for binding in graph._bindings.values():
            outputs = binding.get_outputs()[: len(states)]
            assert {v.data_ptr() for v in outputs} == {addresses[n] for n in states}, name
    main, mtp = (on_device._graphs[n]._values for n in ("main", "mtp"))
    assert main["embed.weight"].data_ptr() == mtp["embed.weight"].data_ptr()
    assert result.streams is not None


def test_parts_run_on_copies_too() -> None:
    """Ops and halves of the parity back end, state in place, against the same on the host."""
    subject = Subject(open_artefact_folder(exported("nano", official=True)))
    backends = [OnnxBackend(subject, "x", on_stand_in), OnnxBackend(subject)]
    rng = np.random.default_rng(0)
    graph = subject.graphs["main"]
    node = next(n for n in graph.nodes if n.op == "linear_fp8")
    x = rng.standard_normal((1, 3, 128), np.float32)
    weights = [subject.fixed("main", n) for n in node.inputs[1:]]
    x16 = x.astype(subject.fixed("main", "embed.weight").dtype)  # type: ignore[union-attr]
    inputs: list[Any] = [x16, *weights]
    got, want = (b.run_op(node, inputs)[0] for b in backends)
    assert_same_bits(got, want)


def test_a_device_that_is_too_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DS4_HOST_TOTAL_BYTES", "100000")
    with pytest.raises(CapacityError, match="do not fit into the GPU's memory") as caught:
        runner(on_stand_in())
    assert caught.value.found == "100.0 kB free of 100.0 kB"
    assert "weights 2.6 MB" in caught.value.expected


def test_without_the_cuda_provider_one_sentence_says_what_to_install() -> None:
    with pytest.raises(ToolchainError, match="has no CUDA provider") as caught:
        open_cuda_placement()
    assert CPU in caught.value.found
    assert "pip install 'ds4export[gpu]'" in caught.value.hint


def test_without_a_gpu_one_sentence_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: [CUDA, CPU])
    monkeypatch.setattr(ort_placement, "open_cuda_device", open_device)
    monkeypatch.setenv("DS4_HOST_NO_DEVICE", "100")
    with pytest.raises(ToolchainError, match="there is no NVIDIA GPU"):
        open_cuda_placement()
    monkeypatch.delenv("DS4_HOST_NO_DEVICE")
    made = open_cuda_placement()
    assert made.device_type == "cuda"
    assert dict(made.providers)[CUDA] == ort_placement.CUDA_OPTIONS
    made.close()


def test_a_provider_that_onnx_runtime_leaves_out_is_not_left_unsaid() -> None:
    """This ONNX Runtime has no CUDA: it would warn, go on with the CPU, and be taken for a GPU's run."""
    placement = Placement(((CUDA, ()), (CPU, ())), "cpu", open_device())
    with (
        pytest.warns(UserWarning, match=CUDA),
        pytest.raises(ToolchainError, match=f"ONNX Runtime cannot start {CUDA}") as caught,
    ):
        runner(placement)
    assert caught.value.found == CPU


@pytest.mark.gpu
def test_a_real_gpu_agrees_with_the_cpu(rng: np.random.Generator) -> None:
    """Needs onnxruntime-gpu. Sums go in another order there: logits are close, not equal."""
    made = runner(open_cuda_placement()), runner(HOST)
    table = rng.integers(0, 1024, (2, 9))
    got, want = (one.step(step_of(one, table, [2, 0], [0, 0])).logits for one in made)
    assert got is not None
    assert want is not None
    assert np.linalg.norm(got - want) < 0.05 * np.linalg.norm(want)
    for one in made:
        one.close()
