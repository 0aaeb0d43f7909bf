"""The back ends of a GPU on stand-ins: every part and the whole, to the bit as the same graph walked on torch.

The stand-in TensorRT computes each plugin node by its reference; so a difference is one of cutting, lowering, binding
or copying. Nothing here has run on a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ds4export.artefact import open_artefact_folder
from ds4export.artefact.manifest import STATE
from ds4export.engine.cache_layout import LAYOUTS, NATIVE
from ds4export.engine.tensorrt import RTX, open_flavour
from ds4export.errors import ExportError, ParityError, ToolchainError
from ds4export.model.weights import array_from_tensor
from ds4export.parity import tensorrt_backend as module
from ds4export.parity import verify
from ds4export.parity.layer_run import seeded_streams
from ds4export.parity.onnx_backend import check_cuda
from ds4export.parity.scenario import make_scenario
from ds4export.parity.subject import Subject
from ds4export.parity.tensorrt_backend import (
    Machine,
    TensorRtBackend,
    check_machine,
    open_machine,
    tensorrt_backend,
)
from ds4export.parity.torch_backend import TorchBackend
from ds4export.runtime.kv_cache import allocate_state
from tests.engine.kit import RTX_MISSING, shells
from tests.kit.artefacts import exported, quiet
from tests.runtime import trt_standin
from tests.runtime.test_trt_open import in_either
from tests.runtime.trt_kit import assert_same_bits, flavour, open_device, without_mark

NAME = "tiny-base"


@pytest.fixture(scope="module")
def subject() -> Subject:
    return Subject(open_artefact_folder(exported(NAME, official=True)))


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return without_mark(shells(), tmp_path_factory.mktemp("library"))


@pytest.fixture(scope="module")
def backend(subject: Subject, library: Path) -> Iterator[TensorRtBackend]:
    machine = Machine(flavour(), library, open_device)
    made = TensorRtBackend(subject, machine)
    assert made.name == "tensorrt-rtx"
    yield made
    assert not machine.flavour.module.IExecutionContext.errors


def values_of(subject: Subject, graph: str, tokens: int) -> dict[str, Any]:
    """Every value of a graph at one step: what the reference ops make of seeded ids over a filled pool."""
    manifest = subject.manifest
    rng = np.random.default_rng(tokens)
    pool = allocate_state(manifest, 2, 64)
    for array in pool.values():
        array[:] = rng.standard_normal(array.shape, np.float32).astype(array.dtype)
    ids = rng.integers(0, manifest.config.vocab_size, (1, tokens))
    streams = seeded_streams(manifest.config, ids.shape, [tokens], official=True)
    feeds = {
        "ids": ids,
        "next_ids": ids,
        "slots": np.array([1]),
        "positions": np.array([8]),
        "num_new": np.array([tokens]),
        "logit_rows": np.array([[tokens - 1]]),
        "streams": array_from_tensor(streams),
    }
    nodes = subject.graphs[graph].nodes
    values = feeds | pool
    taps = [name for node in nodes for name in node.outputs]
    return values | TorchBackend(subject).trace(graph, values, taps)


@pytest.fixture(scope="module", params=[5, 1], ids=["prefill", "decode"])
def values(request: pytest.FixtureRequest, subject: Subject) -> dict[str, Any]:
    return values_of(subject, "main", request.param)


def inputs_of(subject: Subject, values: dict[str, Any], part: Any) -> list[Any]:
    arrays = []
    for name in part.inputs:
        fixed = subject.fixed(part.graph, name)
        arrays.append(values[name] if fixed is None else fixed)
    return arrays


def test_every_op_by_itself(
    backend: TensorRtBackend, subject: Subject, values: dict[str, Any]
) -> None:
    torch = TorchBackend(subject)
    seen = set()
    for node in subject.graphs["main"].nodes:
        if (node.op, node.attributes) in seen:
            continue
        seen.add((node.op, node.attributes))
        inputs = inputs_of(subject, values, node)
        before = [np.array(a) for a in inputs]
        got, want = backend.run_op(node, inputs), torch.run_op(node, inputs)
        assert len(got) == len(want)
        for i, (g, w) in enumerate(zip(got, want, strict=True)):
            assert_same_bits(g, w, f"{node.path} output {i}")
        for a, b in zip(inputs, before, strict=True):
            assert_same_bits(np.array(a), b, f"{node.path} wrote into its caller's array")


def test_every_half_by_itself(
    backend: TensorRtBackend, subject: Subject, values: dict[str, Any]
) -> None:
    torch = TorchBackend(subject)
    for half in subject.graphs["main"].halves:
        inputs = inputs_of(subject, values, half)
        for name, g, w in zip(
            half.outputs,
            backend.run_half(half, inputs),
            torch.run_half(half, inputs),
            strict=True,
        ):
            assert_same_bits(g, w, f"{half.path} {name}")


def test_the_same_shapes_are_built_once(
    backend: TensorRtBackend,
    subject: Subject,
    values: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Layers share their plan: weights are inputs."""
    nodes = [n for n in subject.graphs["main"].nodes if n.op == "hc_post"]
    backend.run_op(nodes[0], inputs_of(subject, values, nodes[0]))
    monkeypatch.setattr(backend._builder, "build", None)
    for node in nodes:
        backend.run_op(node, inputs_of(subject, values, node))


@pytest.mark.parametrize("graph", ["main", "mtp"])
def test_a_traced_graph(backend: TensorRtBackend, subject: Subject, graph: str) -> None:
    values = values_of(subject, graph, 3)
    nodes = subject.graphs[graph].nodes
    taps = [nodes[0].outputs[0], nodes[3].outputs[0], *(nodes[-1].outputs)]
    states = [o.name for o in subject.manifest.graphs[graph].outputs if o.kind == STATE]
    taps = [*taps, states[-1]]
    feeds = {n: v for n, v in values.items() if not any(n in node.outputs for node in nodes)}
    got = backend.trace(graph, feeds, taps)
    assert list(got) == taps
    for name in taps:
        assert_same_bits(got[name], values[name], name)


def test_the_whole_over_the_scenario(backend: TensorRtBackend, subject: Subject) -> None:
    """The scenario's steps until the late sequences, with four rows of logits each and MTP."""
    config = subject.manifest.config
    scenario = make_scenario(config, frozenset(config.ratio(i) for i in range(3)))
    sizes = {"num_slots": scenario.num_slots, "max_context": scenario.max_context}
    run, want_run = backend.open(**sizes), TorchBackend(subject).open(**sizes)
    for step in scenario.steps[:3]:
        got, want = run.runner.step(step.inputs), want_run.step(step.inputs)
        assert got.logits is not None
        assert want.logits is not None
        asked = step.inputs.logit_rows >= 0
        assert_same_bits(got.logits[asked], want.logits[asked])
        assert_same_bits(run.streams(got.streams), want_run.streams(want.streams))
        mtp = run.runner.mtp_step(step.mtp_inputs(), got.streams).logits
        want_mtp = want_run.mtp_step(step.mtp_inputs(), want.streams).logits
        assert mtp is not None
        assert want_mtp is not None
        assert_same_bits(mtp[asked], want_mtp[asked])
    name = "state.layers.1.entries"
    rows = np.ones(run.read_state(name).shape[1:], run.read_state(name).dtype)
    run.write_state(name, 1, rows)
    want_run.write_state(name, 1, rows)
    for name in want_run.state:
        assert_same_bits(run.read_state(name), want_run.read_state(name), name)
    run.close()


def test_a_part_that_does_not_build_or_run_is_a_finding(
    backend: TensorRtBackend,
    subject: Subject,
    values: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    node = subject.graphs["main"].nodes[0]
    inputs = inputs_of(subject, values, node)
    trt = backend._machine.flavour.module
    monkeypatch.setattr(backend, "_plans", {})
    monkeypatch.setattr(trt.Builder, "refuses", "no tactic")
    with pytest.raises(ParityError, match="builder refuses") as caught:
        backend.run_op(node, inputs)
    assert caught.value.where == node.path
    assert "no tactic" in caught.value.found
    monkeypatch.undo()
    monkeypatch.setattr(trt.IExecutionContext, "execute_async_v3", lambda *_: False)
    with pytest.raises(ParityError, match="cannot run the step"):
        backend.run_op(node, inputs)


@pytest.mark.parametrize("graph", ["main", "mtp"])
def test_parts_are_built_by_the_real_tensorrt(
    subject: Subject, library: Path, graph: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every op, every half and the graph with taps: for a GPU of tomorrow, with one plugin record for each node."""
    pytest.importorskip("tensorrt_rtx", reason=RTX_MISSING)
    monkeypatch.setenv("DS4_HOST_CAPABILITY", "120")
    made = TensorRtBackend(subject, Machine(open_flavour(RTX), library, open_device))
    built: list[str] = []

    def executed(part: Any, arrays: Any, shared: Any) -> dict[str, Any]:
        """What a GPU would do; here the plan is what is asked for."""
        built.append(part.tensors.file)
        return {t.name: np.empty(0) for t in part.tensors.outputs}

    monkeypatch.setattr(made, "_execute", executed)
    values = values_of(subject, graph, 5)
    nodes = {(n.op, n.attributes): n for n in subject.graphs[graph].nodes}.values()
    for node in nodes:
        made.run_op(node, inputs_of(subject, values, node))
    halves = subject.graphs[graph].halves
    for half in halves:
        made.run_half(half, inputs_of(subject, values, half))
    produced = {name for node in subject.graphs[graph].nodes for name in node.outputs}
    feeds = {n: v for n, v in values.items() if n not in produced}
    made.trace(graph, feeds, [subject.graphs[graph].nodes[4].outputs[0]])
    assert len(built) == len(nodes) + len(halves) + 1
    assert built[-1] == graph


@pytest.mark.slow
@pytest.mark.parametrize("cache", LAYOUTS)
def test_a_whole_verification_passes(
    library: Path, cache: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`verify` over the stand-ins: every level, every step, coverage."""
    machine = Machine(flavour(), library, open_device)
    monkeypatch.setattr(trt_standin, "call_reference", in_either)
    monkeypatch.setattr(module, "open_machine", lambda _: machine)
    monkeypatch.setattr(module, "check_machine", lambda _: None)
    options = verify.VerifyOptions(backend=RTX, cache=cache)
    report = verify.verify_artefact(exported(NAME, official=True), options, quiet())
    assert report.passed, report.first_divergence
    assert report.backend == (RTX if cache == NATIVE else f"{RTX}, packed caches")
    assert not machine.flavour.module.IExecutionContext.errors


@pytest.mark.gpu
def test_ops_on_a_real_gpu(subject: Subject, values: dict[str, Any]) -> None:
    """Needs TensorRT and `make plugins`; bounds are those of `verify`, here only that each part runs."""
    made = tensorrt_backend(subject, RTX)
    for node in subject.graphs["main"].nodes:
        for array in made.run_op(node, inputs_of(subject, values, node)):
            assert array.size


def test_float32_is_refused(library: Path) -> None:
    subject = Subject(open_artefact_folder(exported(NAME)))
    with pytest.raises(ExportError, match="this one is float32"):
        TensorRtBackend(subject, Machine(flavour(), library, open_device))


def test_plugins_that_do_nothing_are_refused(subject: Subject) -> None:
    with pytest.raises(ToolchainError, match="plugins of this library do nothing"):
        TensorRtBackend(subject, Machine(flavour(), shells(), open_device))


def test_a_gpu_that_tensorrt_for_rtx_does_not_know(
    subject: Subject, library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DS4_HOST_CAPABILITY", "90")
    with pytest.raises(ToolchainError, match="does not run on this GPU") as caught:
        TensorRtBackend(subject, Machine(flavour(), library, open_device))
    assert caught.value.found == "SM90"


def test_what_a_machine_without_a_gpu_says(
    subject: Subject, library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorRT, the library, the driver: in this order, each in a sentence."""
    with pytest.raises(ToolchainError, match="TensorRT is not installed"):
        check_machine("tensorrt")
    monkeypatch.setattr(module, "open_flavour", lambda _: flavour())
    monkeypatch.setattr(module, "find_library", lambda: library)
    monkeypatch.setattr(module, "open_cuda_device", open_device)
    assert tensorrt_backend(subject, "tensorrt-rtx").name == "tensorrt-rtx"
    assert open_machine("tensorrt-rtx").library == library
    monkeypatch.setenv("DS4_HOST_NO_DEVICE", "35")
    with pytest.raises(ToolchainError, match="there is no NVIDIA driver"):
        check_machine("tensorrt-rtx")
    with pytest.raises(ToolchainError, match="no CUDA provider"):
        check_cuda()
