"""Packed caches of the TensorRT back ends on stand-ins: parts and the whole, against the same graph on native rows.

The stand-in TensorRT computes each plugin node by its reference, in whichever layout it is given the rows, as the
plugins do; so a difference is one of packing, cutting, lowering, binding or copying. Nothing here has run on a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ds4export.artefact import open_artefact_folder
from ds4export.artefact.manifest import STATE
from ds4export.engine.cache_layout import NATIVE, PACKED
from ds4export.engine.tensorrt import ENTERPRISE, RTX
from ds4export.errors import ParityError, RuntimeInputError
from ds4export.model.weights import array_from_tensor
from ds4export.parity import tensorrt_backend as module
from ds4export.parity.backends import BACKENDS, check_backend, open_backend
from ds4export.parity.layer_run import seeded_streams
from ds4export.parity.levels import Levels
from ds4export.parity.packed_rows import PackedRows, input_kinds, output_kinds
from ds4export.parity.reference import open_reference_checkpoint, reference_model
from ds4export.parity.reference_run import reference_steps
from ds4export.parity.scenario import Scenario, make_scenario
from ds4export.parity.subject import MAIN, Subject
from ds4export.parity.tensorrt_backend import Machine, TensorRtBackend
from ds4export.parity.torch_backend import TorchBackend
from ds4export.parity.whole_run import WholeRun
from ds4export.runtime.kv_cache import allocate_state
from ds4export.state import cache_kind
from tests.engine.kit import shells
from tests.kit.artefacts import exported
from tests.runtime import trt_standin
from tests.runtime.test_trt_open import in_either
from tests.runtime.trt_kit import assert_same_bits, flavour, open_device, without_mark

NAME = "tiny-base"
NUM_GRAPHS = 4  # two steps with MTP
GPU_SM90 = "90"


@pytest.fixture(scope="module")
def subject() -> Subject:
    return Subject(open_artefact_folder(exported(NAME, official=True)))


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return without_mark(shells(), tmp_path_factory.mktemp("library"))


@pytest.fixture(scope="module")
def backend(subject: Subject, library: Path) -> Iterator[TensorRtBackend]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trt_standin, "call_reference", in_either)
        machine = Machine(flavour(), library, open_device)
        made = TensorRtBackend(subject, machine, PACKED)
        assert made.name == "tensorrt-rtx, packed caches"
        yield made
        assert not machine.flavour.module.IExecutionContext.errors


def scenario_of(subject: Subject) -> Scenario:
    """As `verify` has it, rows of late sequences as ops write them."""
    config = subject.manifest.config
    ratios = frozenset(config.ratio(i) for i in range(config.num_hidden_layers + 1))
    return replace(make_scenario(config, ratios), packed=True)


@pytest.fixture(scope="module", params=[5, 1], ids=["prefill", "decode"])
def values(request: pytest.FixtureRequest, subject: Subject) -> dict[str, Any]:
    """Every value of the main graph at one step over a pool of rows that ops could have written."""
    manifest, tokens = subject.manifest, request.param
    rng, rows = np.random.default_rng(tokens), PackedRows(manifest.config)
    pool = allocate_state(manifest, 2, 64)
    for name, array in pool.items():
        array[:] = rng.standard_normal(array.shape, np.float32).astype(array.dtype)
        kind = cache_kind(name)
        if kind is not None:
            array[:] = rows.as_written(array, kind)
    streams = seeded_streams(manifest.config, (1, tokens), [tokens], official=True)
    fed = pool | {
        "ids": rng.integers(0, manifest.config.vocab_size, (1, tokens)),
        "slots": np.array([1]),
        "positions": np.array([8]),
        "num_new": np.array([tokens]),
        "logit_rows": np.array([[tokens - 1]]),
        "streams": array_from_tensor(streams),
    }
    taps = [name for node in subject.graphs[MAIN].nodes for name in node.outputs]
    return fed | TorchBackend(subject).trace(MAIN, fed, taps)


def inputs_of(subject: Subject, values: dict[str, Any], part: Any) -> list[Any]:
    fixed = [subject.fixed(part.graph, name) for name in part.inputs]
    return [values[n] if f is None else f for n, f in zip(part.inputs, fixed, strict=True)]


def assert_same_rows(got: Any, want: Any, kind: str | None, what: str) -> None:
    """The last row of a cache is scratch: whatever lies there may have been rounded."""
    rows = slice(None) if kind is None else slice(None, -1)
    assert_same_bits(got[:, rows] if kind else got, want[:, rows] if kind else want, what)


@pytest.fixture
def given(backend: TensorRtBackend, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What plans are given and what they say of themselves, in order."""
    seen: list[dict[str, Any]] = []
    execute = backend._execute

    def watched(part: Any, arrays: Any, shared: Any) -> dict[str, Any]:
        made = execute(part, arrays, shared)
        told = {t.name: t.dtype for t in (*part.tensors.inputs, *part.tensors.outputs)}
        seen.append({n: (str(a.dtype), told[n], a.shape[-1:]) for n, a in (arrays | made).items()})
        return made

    monkeypatch.setattr(backend, "_execute", watched)
    return seen


def test_every_op_is_given_packed_rows(
    backend: TensorRtBackend, subject: Subject, values: dict[str, Any], given: list[dict[str, Any]]
) -> None:
    torch, seen, counts = TorchBackend(subject), set(), {}
    for node in subject.graphs[MAIN].nodes:
        if (node.op, node.attributes) in seen:
            continue
        seen.add((node.op, node.attributes))
        inputs = inputs_of(subject, values, node)
        got, want = backend.run_op(node, inputs), torch.run_op(node, inputs)
        for i, kind in enumerate(output_kinds(node)):
            assert_same_rows(got[i], want[i], kind, f"{node.path} output {i}")
        found = given[-1]
        kinds = {f"input_{i}": k for i, k in enumerate(input_kinds(node))}
        kinds |= {f"output_{i}": k for i, k in enumerate(output_kinds(node))}
        caches = {n for n, kind in kinds.items() if kind}
        assert {found[n][:2] for n in caches} <= {("int8", "INT8")}
        widths = {array.shape[-1] for array, k in zip(inputs, input_kinds(node), strict=True) if k}
        assert not widths & {found[n][2][0] for n in caches}, "bf16 rows"
        counts[node.op] = len(caches)
    assert counts["attention_csa"] == 3  # ring in and out, entries
    assert counts["indexer_topk"] == 1
    assert counts["compress_csa"] == 2
    assert counts["moe"] == 0


def test_every_half_is_given_packed_rows(
    backend: TensorRtBackend, subject: Subject, values: dict[str, Any], given: list[dict[str, Any]]
) -> None:
    torch = TorchBackend(subject)
    for half in subject.graphs[MAIN].halves:
        inputs = inputs_of(subject, values, half)
        got, want = backend.run_half(half, inputs), torch.run_half(half, inputs)
        for name, g, w in zip(half.outputs, got, want, strict=True):
            assert_same_rows(g, w, cache_kind(name), f"{half.path} {name}")
        packed = {n for i, n in enumerate(half.inputs) if given[-1][f"input_{i}"][0] == "int8"}
        weights = {n for n in half.inputs if subject.is_weight(n)}
        assert packed - weights == {n for n in half.inputs if cache_kind(n)}
    assert len(given) == len(subject.graphs[MAIN].halves)


def test_a_trace_shows_native_rows(
    backend: TensorRtBackend, subject: Subject, values: dict[str, Any], given: list[dict[str, Any]]
) -> None:
    nodes = subject.graphs[MAIN].nodes
    states = [o.name for o in subject.manifest.graphs[MAIN].outputs if o.kind == STATE]
    taps = [nodes[0].outputs[0], *states, "logits"]
    made = {name for node in nodes for name in node.outputs}
    got = backend.trace(MAIN, {n: v for n, v in values.items() if n not in made}, taps)
    assert list(got) == taps
    for name in taps:
        assert_same_rows(got[name], values[name], cache_kind(name), name)
    caches = [i.name for i in subject.manifest.graphs[MAIN].inputs if cache_kind(i.name)]
    assert {given[-1][n][:2] for n in caches} == {("int8", "INT8")}


def test_rows_that_packing_would_change_are_refused(
    backend: TensorRtBackend, subject: Subject, values: dict[str, Any]
) -> None:
    node = next(n for n in subject.graphs[MAIN].nodes if any(input_kinds(n)))
    index = next(i for i, kind in enumerate(input_kinds(node)) if kind)
    inputs = inputs_of(subject, values, node)
    inputs[index] = np.array(inputs[index])
    inputs[index][0, 0] = 1
    inputs[index][0, 0, 0] = 0.59375  # between two codes, whatever the scale
    with pytest.raises(ParityError, match="cannot be packed without a loss") as caught:
        backend.run_op(node, inputs)
    assert caught.value.where == node.inputs[index]


def test_the_whole_keeps_packed_caches_and_shows_native_rows(
    backend: TensorRtBackend, subject: Subject
) -> None:
    """Steps, MTP, a slot that is written from outside; the pool is smaller than that of native rows."""
    scenario = scenario_of(subject)
    sizes = {"num_slots": scenario.num_slots, "max_context": scenario.max_context}
    run, want_run = backend.open(**sizes), TorchBackend(subject).open(**sizes)
    for step in scenario.steps[:3]:
        got, want = run.runner.step(step.inputs), want_run.step(step.inputs)
        assert got.logits is not None
        assert want.logits is not None
        asked = step.inputs.logit_rows >= 0
        assert_same_bits(got.logits[asked], want.logits[asked])
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
        assert_same_rows(run.read_state(name), want_run.read_state(name), cache_kind(name), name)
    runner: Any = run.runner
    assert runner.read_state("state.layers.1.entries").dtype == np.int8
    native = sum(array.nbytes for array in want_run.state.values())
    assert runner._memory.memory.state < native
    run.close()


def findings(backend: TensorRtBackend, subject: Subject, num_graphs: int | None) -> list[str]:
    """What a verification over the scenario's first graphs finds wrong; all of them, and coverage, without a number."""
    scenario = scenario_of(subject)
    levels = Levels(subject, backend, subject.ops, 0)
    checkpoint = open_reference_checkpoint(subject.artefact, None)
    model = reference_model(subject.artefact, checkpoint, range(*subject.manifest.layers))
    whole = WholeRun(levels, scenario)
    for covered in scenario.steps:
        levels.coverage.step(covered.inputs)
    for number, step in enumerate(reference_steps(model, scenario, with_floor=False)):
        if num_graphs is not None and number == num_graphs:
            break
        whole.check(step)
    whole.run.close()
    checks = whole.checks() if num_graphs is not None else [*levels.checks(), *whole.checks()]
    assert checks
    failed = [f"{c.level} {c.name}: {c.detail}" for c in checks if c.failed]
    return [line for line in (levels.first(), whole.first()) if line] + failed


def test_the_first_steps_verify(backend: TensorRtBackend, subject: Subject) -> None:
    assert findings(backend, subject, NUM_GRAPHS) == []


@pytest.mark.slow
def test_a_whole_verification_passes(backend: TensorRtBackend, subject: Subject) -> None:
    """Every level, every step, coverage."""
    assert findings(backend, subject, None) == []


def test_an_engine_of_enterprise_tensorrt_is_for_this_gpu(
    subject: Subject, library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DS4_HOST_CAPABILITY", GPU_SM90)
    own = replace(flavour(), name=ENTERPRISE)
    made = TensorRtBackend(subject, Machine(own, library, open_device))
    assert made.name == ENTERPRISE
    assert made._builder.targets == ("SM90",)


# the table of back ends


@pytest.mark.parametrize("name", ["onnxruntime", "torch", "torch-cuda", "onnxruntime-cuda"])
def test_back_ends_that_compute_on_bf16_rows_refuse_packed_caches(name: str) -> None:
    """Before they look at the machine, which may lack what they need."""
    with pytest.raises(RuntimeInputError, match=f"`{name}` has no packed caches") as caught:
        check_backend(name, PACKED)
    assert caught.value.found == "--cache packed"
    assert caught.value.expected == "a back end of plugins: plugins-on-host, tensorrt-rtx, tensorrt"


def test_an_unknown_name_is_told_as_such_whatever_the_layout() -> None:
    for cache in (NATIVE, PACKED):
        with pytest.raises(RuntimeInputError, match="unknown --backend") as caught:
            check_backend("no-such", cache)
        assert caught.value.expected == ", ".join(BACKENDS)


@pytest.mark.parametrize("name", [RTX, ENTERPRISE])
def test_the_layout_reaches_the_back_end(
    subject: Subject, library: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "open_flavour", lambda _: replace(flavour(), name=name))
    monkeypatch.setattr(module, "find_library", lambda: library)
    monkeypatch.setattr(module, "open_cuda_device", open_device)
    assert open_backend(name, subject, PACKED).name == f"{name}, packed caches"
    assert open_backend(name, subject).name == name
