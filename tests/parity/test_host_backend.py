"""`verify --backend plugins-on-host`: refusals everywhere; parity where the plugin library and its host are built.

Whole runs, and the first compile of the host, are left to the slow tests (`test_host_runs`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from ds4export.artefact import open_artefact_folder
from ds4export.engine.cache_layout import NATIVE, PACKED
from ds4export.engine.plugins import DOES_NOTHING, PluginLibrary
from ds4export.errors import ParityError, RuntimeInputError, ToolchainError
from ds4export.export import ExportOptions, export_checkpoint
from ds4export.model.weights import array_from_tensor
from ds4export.parity import host_library
from ds4export.parity.backends import check_backend
from ds4export.parity.compare import live_rows, live_tokens
from ds4export.parity.host_backend import NAME, HostBackend, job_of
from ds4export.parity.metrics import difference
from ds4export.parity.records import Record, inputs_of, make_record
from ds4export.parity.reference import open_reference_checkpoint, reference_model
from ds4export.parity.reference_run import GraphStep, reference_steps
from ds4export.parity.results import END_TO_END, HALF, OP, PROBE, Report
from ds4export.parity.subject import MAIN, Half, OpNode, Subject
from ds4export.parity.torch_backend import TorchBackend
from ds4export.parity.verify import Verification, VerifyOptions
from ds4export.ptxhost.plugin_host import Buffer, HostFaultError, RefusalError
from ds4export.report import Reporter
from tests.parity.faults import DATA, Bench
from tests.parity.plant import Plant

Array = NDArray[Any]
NUM_GRAPHS = 3  # a step with MTP, and the main graph of the next


@pytest.fixture(scope="session")
def tiny_a(bench: Bench) -> Path:
    """tiny-a in official numerics: every kind of layer."""
    return bench.artefact("tiny-a", "official")


@pytest.fixture(scope="session")
def steps(tiny_a: Path) -> list[GraphStep]:
    """The reference's first steps over tiny-a."""
    return first_steps(tiny_a)


def first_steps(artefact: Path) -> list[GraphStep]:
    made = Verification(artefact, VerifyOptions(), num_floors=0)
    checkpoint = open_reference_checkpoint(made.artefact, None)
    model = reference_model(made.artefact, checkpoint, made.available)
    found = reference_steps(model, made.scenario, with_floor=False)
    return [step for _, step in zip(range(NUM_GRAPHS), found, strict=False)]


@pytest.fixture(scope="session")
def built() -> None:
    """Skips unless a host for this library has been compiled."""
    needs_host()


def needs_host() -> None:
    try:
        host_library.check_host()
    except ToolchainError as error:
        pytest.skip(error.what)
    if not host_library.is_compiled():
        pytest.skip(f"no host is compiled for this library: ds4export verify --backend {NAME} …")


@pytest.fixture
def subject(tiny_a: Path) -> Subject:
    return Subject(open_artefact_folder(tiny_a))


@pytest.fixture
def backend(built: None, subject: Subject) -> Iterator[HostBackend]:
    made = opened(subject)
    yield made
    made.close()


def opened(subject: Subject, cache: str = NATIVE) -> HostBackend:
    """The back end; skips where the built library is older than its ops."""
    try:
        return HostBackend(subject, cache)
    except ToolchainError as error:
        pytest.skip(f"{error.what}: {error.found}")


def node_of(subject: Subject, path: str) -> OpNode:
    return next(n for n in subject.graphs[MAIN].nodes if n.path == path)


# refusals


def test_a_float32_artefact_is_refused(small_artefact: Path) -> None:
    with pytest.raises(RuntimeInputError, match="the plugins compute official numerics only") as e:
        HostBackend(Subject(open_artefact_folder(small_artefact)))
    assert e.value.found == "float32"
    assert "--numerics official" in e.value.hint


def test_a_missing_library_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ds4export.engine.plugins.BUILD", tmp_path)
    with pytest.raises(ToolchainError, match="the plugin library is not built") as caught:
        check_backend(NAME)
    assert "make plugins" in caught.value.hint


def test_a_missing_compiler_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host_library, "find_library", lambda: tmp_path)
    monkeypatch.setattr(host_library, "_record", lambda _: tmp_path / "none.json")
    monkeypatch.setattr(host_library, "find_toolchain", lambda: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ToolchainError, match="`g\\+\\+` is not installed"):
        check_backend(NAME)


def test_a_library_that_does_nothing_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shells = PluginLibrary("shells.so", "0" * 64, 1, DOES_NOTHING)
    monkeypatch.setattr(host_library, "find_library", lambda: tmp_path)
    monkeypatch.setattr(host_library, "identify", lambda _: shells)
    with pytest.raises(ToolchainError, match="the plugins of this library do nothing"):
        check_backend(NAME)


def test_ops_that_the_library_lacks_are_listed(
    built: None, subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    has = {op: "1" for op in subject.ops if op not in ("moe", "kv_row")}
    monkeypatch.setattr("ds4export.ptxhost.plugin_host.PluginHost.ops", lambda _: has)
    with pytest.raises(ToolchainError, match=r"lacks 2 of the \d+ ops") as caught:
        HostBackend(subject)
    assert caught.value.found == "no plugin for kv_row, moe"


# buffers


def norm(backend: HostBackend) -> tuple[OpNode, list[Array]]:
    """A node whose kernel is short, and inputs for it."""
    node = node_of(backend.subject, "layers.0/attn/q_norm/rms_norm")
    weight = backend.subject.fixed(MAIN, node.inputs[1])
    assert weight is not None
    x = np.random.default_rng(0).standard_normal((2, 3, len(weight)))
    return node, [x.astype(weight.dtype), weight]


def test_inputs_may_lie_in_buffers_of_any_kind(backend: HostBackend, tmp_path: Path) -> None:
    node, (x, weight) = norm(backend)
    want = backend.host.run(job_of(node, [x, weight]))[0]
    file = tmp_path / "x.bin"
    file.write_bytes(b"odd" + x.tobytes())
    shared = backend.host.shared(x.dtype, x.shape)
    shared.array[:] = x
    aligned = tmp_path / "aligned.bin"
    aligned.write_bytes(bytes(32) + x.tobytes())
    for given in (
        backend.host.buffer(x),
        shared,
        backend.host.mapped(file, 3, x.dtype, x.shape),
        backend.host.mapped(aligned, 32, x.dtype, x.shape),
    ):
        np.testing.assert_array_equal(backend.host.run(job_of(node, [given, weight]))[0], want)
        kept = backend.host.run_keeping(job_of(node, [given, weight]), 1)
        np.testing.assert_array_equal(backend.host.read(kept[0]), want)


def test_a_shared_buffer_is_the_same_memory(backend: HostBackend) -> None:
    for shape in ((), (0, 4), (5,), (3, 700)):
        shared = backend.host.shared(np.dtype(np.float32), shape)
        shared.array[...] = np.arange(shared.array.size).reshape(shape)
        np.testing.assert_array_equal(backend.host.read(shared), shared.array)


def test_a_buffer_is_dropped_with_its_last_reference(backend: HostBackend) -> None:
    host, array = backend.host, np.ones(3, np.float32)
    kept, gone = host.buffer(array), host.buffer(array)
    number = gone.number
    del gone
    np.testing.assert_array_equal(host.read(kept), array)
    with pytest.raises(RefusalError, match=f"there is no buffer {number}"):
        host.read(Buffer(number, array.dtype, array.shape, []))


def test_files_that_cannot_be_mapped_are_refused(backend: HostBackend, tmp_path: Path) -> None:
    short = tmp_path / "short.bin"
    short.write_bytes(bytes(8))
    dtype = np.dtype(np.float32)
    with pytest.raises(RefusalError, match=r"short\.bin ends before byte 16"):
        backend.host.mapped(short, 0, dtype, [4])
    with pytest.raises(RefusalError, match="No such file"):
        backend.host.mapped(tmp_path / "none.bin", 0, dtype, [4])


def test_a_wrong_number_of_kept_outputs_is_refused(backend: HostBackend) -> None:
    node, inputs = norm(backend)
    with pytest.raises(RefusalError, match="1 outputs, of which 2 are kept"):
        backend.host.run_keeping(job_of(node, inputs), 2)


def ring_call(backend: HostBackend, steps: list[GraphStep]) -> tuple[OpNode, list[Array], Array]:
    """The window attention of the first step: node, inputs, the ring it must leave."""
    node = node_of(backend.subject, "layers.0/attn/attention_window")
    call = next(c for c in steps[0].calls if c.op.name == node.op)
    inputs = [array_from_tensor(t) for t in call.inputs]
    return node, inputs, array_from_tensor(call.outputs[1])


def test_an_aliased_output_is_in_the_memory_of_its_input(
    backend: HostBackend, steps: list[GraphStep]
) -> None:
    node, inputs, want = ring_call(backend, steps)
    ring = backend.host.shared(inputs[2].dtype, inputs[2].shape)
    ring.array[:] = inputs[2]
    kept = backend.host.run_keeping(job_of(node, [*inputs[:2], ring, *inputs[3:]]), 2)
    live = ~np.isnan(want.astype(np.float32))
    assert live.any()
    np.testing.assert_array_equal(ring.array[live], want[live])
    ring.array[0, 0] = 7
    np.testing.assert_array_equal(
        backend.host.read(kept[1]).view(np.int16), ring.array.view(np.int16)
    )


def test_writing_to_a_mapped_file_ends_the_host(
    backend: HostBackend, steps: list[GraphStep], tmp_path: Path
) -> None:
    node, inputs, _ = ring_call(backend, steps)
    file = tmp_path / "ring.bin"
    file.write_bytes(inputs[2].tobytes())
    ring = backend.host.mapped(file, 0, inputs[2].dtype, inputs[2].shape)
    with pytest.raises(HostFaultError, match="ended with code -11"):
        backend.host.run(job_of(node, [*inputs[:2], ring, *inputs[3:]]))
    assert file.read_bytes() == inputs[2].tobytes()


# parity


def verified(artefact: Path, steps: list[GraphStep], cache: str = NATIVE) -> Report:
    """The report on some steps of the reference."""
    opened(Subject(open_artefact_folder(artefact))).close()
    made = Verification(artefact, VerifyOptions(backend=NAME, cache=cache), num_floors=0)
    made.run_whole(steps)
    assert isinstance(made.backend, HostBackend)
    made.backend.close()
    return made.report(0.0)


@pytest.mark.parametrize("cache", [NATIVE, PACKED])
def test_the_first_steps_agree_at_every_level(
    built: None, tiny_a: Path, steps: list[GraphStep], cache: str
) -> None:
    report = verified(tiny_a, steps, cache)
    assert report.first_divergence == ""
    assert report.backend == (NAME if cache == NATIVE else f"{NAME}, packed caches")
    subject = Subject(open_artefact_folder(tiny_a))
    nodes = [n.path for g in subject.graphs.values() for n in g.nodes]
    for level in (OP, HALF, PROBE, END_TO_END):
        checks = report.of(level)
        assert checks
        assert not [c for c in checks if c.failed]
    assert {c.name.rsplit(":", 1)[0] for c in report.of(OP)} == set(nodes)


def other_table(plant: Plant) -> None:
    plant.rewire("layers.1/attn", 4, "rope.plain")


def other_attribute(plant: Plant) -> None:
    for function in plant.models[MAIN].functions.values():
        for node in (n for n in function if n.op_type == "hc_pre"):
            node.attributes["iterations"] = ir.AttrInt64("iterations", 1)


PLANTED: dict[Callable[[Plant], None], str] = {
    other_table: "layer 1, query_heads",
    other_attribute: "layer 0, hc_pre",
}


@pytest.mark.parametrize("fault", PLANTED, ids=lambda f: f.__name__)
def test_a_planted_fault_is_named(
    built: None,
    tiny_a: Path,
    steps: list[GraphStep],
    tmp_path: Path,
    fault: Callable[[Plant], None],
) -> None:
    plant = Plant(tiny_a, tmp_path / "planted")
    fault(plant)
    report = verified(plant.save(), steps[:1])
    assert not report.passed
    assert report.first_divergence.startswith(f"first divergence: {PLANTED[fault]}")


def half_call(artefact: Path, path: str, step: GraphStep) -> tuple[Subject, Half, list[Array]]:
    """A half of an artefact and what the reference feeds it with in a step."""
    subject = Subject(open_artefact_folder(artefact))
    graph = subject.graphs[MAIN]
    record = make_record(MAIN, step.number, step.inputs, graph.nodes, step.calls, {**step.feeds})
    assert isinstance(record, Record)
    half = next(h for h in graph.halves if h.path == path)
    return subject, half, inputs_of(subject, record, half)


def test_inputs_in_another_order_are_refused(
    built: None, tiny_a: Path, steps: list[GraphStep], tmp_path: Path
) -> None:
    """The experts' part is float32, the shared expert's bf16: a plugin looks at the types it is given."""
    plant = Plant(tiny_a, tmp_path / "planted")
    function = next(f for f in plant.models[MAIN].functions.values() if f.name == "ffn_score")
    node = next(n for n in function if n.op_type == "moe_combine")
    first, second = node.inputs
    node.replace_input_with(0, second)
    node.replace_input_with(1, first)
    layer = next(n for n in plant.models[MAIN].graph if n.op_type == "ffn_score")
    subject, half, inputs = half_call(plant.save(), layer.name or "", steps[0])
    backend = opened(subject)
    with pytest.raises(ParityError, match="a plugin refuses a node") as caught:
        backend.run_half(half, inputs)
    backend.close()
    assert caught.value.where == f"{layer.name}/moe_combine"
    assert "tensor 0 with type" in caught.value.found


def test_a_state_that_is_still_read_is_not_written_in_place(
    built: None, tiny_a: Path, steps: list[GraphStep], tmp_path: Path
) -> None:
    """A graph that reads the entries of before the chunk gets those, whatever has been written since."""
    plant = Plant(tiny_a, tmp_path / "planted")
    plant.rewire("attention_csa", 3, "entries", function="attn_csa")
    subject, half, inputs = half_call(plant.save(), "layers.1/attn", steps[2])
    inputs = [
        np.where(np.isnan(a), 1, a).astype(a.dtype) if a.dtype.kind != "i" else a for a in inputs
    ]
    backend = opened(subject)
    got = backend.run_half(half, inputs)[0]
    backend.close()
    want = TorchBackend(subject).run_half(half, inputs)[0]
    in_place = TorchBackend(Subject(open_artefact_folder(tiny_a))).run_half(half, inputs)[0]
    live = live_tokens(steps[2].inputs)
    assert difference(in_place, want, live).relative > 0.05
    assert difference(got, want, live).relative < 1e-2


def test_a_trace_is_the_graph_without_its_effects(
    backend: HostBackend, steps: list[GraphStep]
) -> None:
    """Taps are what the nodes made, the arrays that were fed in stay as they are."""
    step, graph = steps[2], backend.subject.graphs[MAIN]
    taps = [graph.nodes[0].outputs[0], "state.layers.0.window_out", "logits"]
    feeds = {n: a.copy() for n, a in step.feeds.items()}
    got = backend.trace(MAIN, feeds, taps)
    want = TorchBackend(backend.subject).trace(MAIN, step.feeds, taps)
    for name, array in step.feeds.items():
        assert feeds[name].tobytes() == array.tobytes()
    assert list(got) == taps
    np.testing.assert_array_equal(got[taps[0]], want[taps[0]])
    rows = ~np.isnan(want[taps[1]].astype(np.float32))
    rows[step.inputs.slots, -1] = False  # scratch, which padding writes to
    assert difference(got[taps[1]], want[taps[1]], rows).relative < 1e-2
    assert difference(got["logits"], want["logits"], live_rows(step.inputs)).relative < 0.1


def test_a_range_of_layers_takes_streams(
    built: None, tmp_path: Path, steps: list[GraphStep]
) -> None:
    path = tmp_path / "range"
    options = ExportOptions(layers=range(1, 2))
    with (tmp_path / "log").open("w") as log:
        export_checkpoint(DATA / "tiny-a" / "checkpoint", path, options, Reporter(stream=log))
    subject = Subject(open_artefact_folder(path))
    backend = opened(subject)
    run = backend.open(num_slots=4, max_context=64)
    step = steps[0].inputs
    with pytest.raises(RuntimeInputError, match="streams of the layers before are missing"):
        run.runner.step(step)
    config = subject.manifest.config
    streams = np.zeros((*step.ids.shape, config.hc_mult, config.hidden_size), ml_dtypes.bfloat16)
    result = run.runner.step(step, streams_in=streams, want_logits=False)
    assert result.logits is None
    assert run.streams(result.streams).shape == streams.shape
    backend.close()
