"""Opening an engine folder for running: the order of the checks, each mismatch with both sides, and a run at the end.

The folder is written by the stage that writes real ones, with plans of the stand-in TensorRT and a library of shells
that does not say of itself that it does nothing: the stand-in runs no plugin.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from ds4export.artefact import open_artefact_folder
from ds4export.artefact.writer import staged_folder
from ds4export.engine import build as stage
from ds4export.engine.build import BuildOptions
from ds4export.engine.cache_layout import NATIVE, PACKED, with_cache
from ds4export.engine.plan import PlanBuilder
from ds4export.engine.plugins import identify
from ds4export.engine.profile import Sizes
from ds4export.engine.reader import Engine, open_engine
from ds4export.engine.tensorrt import ENTERPRISE, RTX, Flavour, open_flavour
from ds4export.errors import (
    ArtefactError,
    CapacityError,
    Ds4Error,
    RuntimeInputError,
    ToolchainError,
)
from ds4export.ops._define import OpDef
from ds4export.ops._packed import in_either_layout
from ds4export.parity.packed_rows import PackedRows
from ds4export.parity.reference import Call, call_reference
from ds4export.runtime import trt_open
from ds4export.runtime.trt_checks import check_source
from ds4export.runtime.trt_open import open_engine_runner
from ds4export.state import cache_kind
from tests.engine.kit import RTX_MISSING, shells
from tests.kit.artefacts import exported, quiet
from tests.runtime import trt_standin
from tests.runtime.trt_kit import CONTEXT, SLOTS, STEPS, flavour, open_device, step_of, without_mark

SOURCE: dict[str, Any] = {"name": "nano", "official": True, "layers": (1, 4)}
TARGETS = ("SM80", "SM89")


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return without_mark(shells(), tmp_path_factory.mktemp("library"))


@pytest.fixture(scope="module")
def built_with() -> Flavour:
    return flavour()


@pytest.fixture(scope="module")
def engine(library: Path, built_with: Flavour, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_engine(tmp_path_factory.mktemp("engine") / "e", library, built_with)


def write_engine(
    target: Path,
    library: Path,
    opened: Flavour,
    targets: tuple[str, ...] = TARGETS,
    cache: str = NATIVE,
) -> Path:
    artefact = open_artefact_folder(exported(**SOURCE))
    tables = with_cache(artefact.manifest, cache)
    sizes = Sizes(CONTEXT, SLOTS, STEPS)
    job = stage._Job(tables, artefact.manifest.hash, sizes, targets, "", library, identify(library))
    builder = PlanBuilder(opened, ("SM80",), quiet())
    plans = {
        name: builder.build(name, job.lowered(artefact.graph_path(name)), job.profiles(name))
        for name in artefact.manifest.graphs
    }
    with staged_folder(target) as folder:
        stage._write(folder, job, opened, plans)
    return target


@pytest.fixture
def machine(built_with: Flavour, monkeypatch: pytest.MonkeyPatch) -> Flavour:
    """This machine has the stand-ins."""
    monkeypatch.setattr(trt_open, "open_flavour", lambda _: built_with)
    monkeypatch.setattr(trt_open, "open_cuda_device", open_device)
    return built_with


def opened(engine: Path | None, library: Path, **options: Any) -> Any:
    artefact = open_artefact_folder(exported(**SOURCE))
    return open_engine_runner(
        artefact, options.pop("backend", "tensorrt-rtx"), engine, plugins=library, **options
    )


def test_runs(engine: Path, library: Path, machine: Flavour, rng: np.random.Generator) -> None:
    registry = machine.module.get_plugin_registry()
    runner = opened(engine, library)
    assert (runner.limits.num_slots, runner.limits.max_context) == (SLOTS, CONTEXT)
    assert registry.loaded == [str(library)]
    assert not np.any(runner.read_state("state.layers.1.window"))
    streams = rng.standard_normal((1, 2, 4, 128), np.float32)
    inputs = step_of(runner, [[1, 2]], [0], [0])
    dtype = runner.read_state("state.layers.1.window").dtype
    assert runner.step(inputs, streams_in=streams.astype(dtype)).logits.shape == (1, 1, 1024)
    assert np.any(runner.read_state("state.layers.1.window"))
    device = runner._device
    runner.close()
    assert registry.loaded == []
    assert device.free_bytes() == device.facts.total_bytes


@pytest.fixture(scope="module")
def packed_engine(
    library: Path, built_with: Flavour, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    target = tmp_path_factory.mktemp("packed") / "e"
    return write_engine(target, library, built_with, cache=PACKED)


def in_either(op: OpDef, inputs: Any, attributes: Any) -> Call:
    """What the plugins do: rows of a cache as they come."""
    return call_reference(replace(op, reference=in_either_layout(op)), inputs, attributes)


def test_packed_caches_are_the_runners(
    engine: Path,
    packed_engine: Path,
    library: Path,
    machine: Flavour,
    rng: np.random.Generator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An engine with packed caches says what one with native caches says, out of a smaller pool."""
    monkeypatch.setattr(trt_standin, "call_reference", in_either)
    streams = rng.standard_normal((1, 6, 4, 128), np.float32).astype(ml_dtypes.bfloat16)
    logits, states, num_bytes = [], [], []
    for folder in (engine, packed_engine):
        runner = opened(folder, library, fill=np.nan)
        inputs = step_of(runner, [[1, 2, 3, 4, 5, 6]], [0], [0])
        made = runner.step(inputs, streams_in=streams)
        logits.append(made.logits)
        names = [n for n in runner._states if cache_kind(n)]
        states.append({n: runner.read_state(n) for n in names})
        num_bytes.append(runner._memory.memory.state)
        runner.close()
    np.testing.assert_array_equal(logits[1].view(np.int32), logits[0].view(np.int32))
    native, packed = states
    assert num_bytes[1] < num_bytes[0]
    config = open_artefact_folder(exported(**SOURCE)).manifest.config
    for name, rows in packed.items():
        assert rows.dtype == np.int8
        assert rows.shape[-1] == (68 if name.endswith("keys") else 200)
        back = PackedRows(config).unpack(rows, str(cache_kind(name)))
        written = ~np.isnan(native[name].astype(np.float32)).any(-1)
        scratch = np.zeros_like(written)
        scratch[:, -1] = True
        live = written & ~scratch
        np.testing.assert_array_equal(back[live], native[name][live], err_msg=name)
        assert (rows[~written & ~scratch] == -1).all(), name  # all ones are NaN
        # an entry of layer 2 takes 128 tokens, MTP has not run
        assert bool(live.any()) is not (name in ("state.layers.2.entries", "state.mtp.0.window")), (
            name
        )


def test_an_engine_whose_caches_are_not_in_its_layout(packed_engine: Path) -> None:
    artefact, given = open_artefact_folder(exported(**SOURCE)), open_engine(packed_engine)
    check_source(given, artefact)
    changed = Engine(packed_engine, replace(given.manifest, cache=NATIVE))
    with pytest.raises(ArtefactError, match="differ in their tensors of graph `main`") as caught:
        check_source(changed, artefact)
    assert (
        "state.layers.1.window state INT8 ['S', 'rows.layers.1.window', 200]" in caught.value.found
    )
    assert "BFLOAT16" in caught.value.expected


def test_two_runners_share_the_library(engine: Path, library: Path, machine: Flavour) -> None:
    """TensorRT loads a library once; it stays until the last runner has gone."""
    registry = machine.module.get_plugin_registry()
    first, second = opened(engine, library), opened(engine, library, num_slots=1)
    assert registry.loaded == [str(library)]
    first.close()
    assert registry.loaded == [str(library)]
    second.close()
    assert registry.loaded == []
    opened(engine, library).close()


def refused(kind: type[Ds4Error], what: str, *arguments: Any, **options: Any) -> Ds4Error:
    with pytest.raises(kind, match=what) as caught:
        opened(*arguments, **options)
    return caught.value


def test_no_engine(library: Path) -> None:
    error = refused(RuntimeInputError, "`tensorrt-rtx` needs an engine", None, library)
    assert "ds4export build" in error.hint


def test_an_engine_of_the_other_tensorrt(engine: Path, library: Path) -> None:
    error = refused(ToolchainError, "another TensorRT", engine, library, backend="tensorrt")
    assert error.found == "an engine of tensorrt-rtx 1.7.1.116"
    assert error.expected == "tensorrt"


def test_an_engine_of_another_artefact(engine: Path, library: Path) -> None:
    artefact = open_artefact_folder(exported("nano", official=True, layers=(0, 4)))
    with pytest.raises(ArtefactError, match="built from another artefact") as caught:
        open_engine_runner(artefact, "tensorrt-rtx", engine, plugins=library)
    assert "layers 1:4" in caught.value.found
    assert "layers 0:4" in caught.value.expected


def test_an_artefact_whose_tables_are_not_those_of_the_engine(engine: Path, library: Path) -> None:
    """The hash is right and a tensor is not: whoever made this, it must not be bound."""
    artefact = open_artefact_folder(exported(**SOURCE))
    given = open_engine(engine)
    main = given.manifest.graphs["main"]
    cut = replace(main.tensors, outputs=main.tensors.outputs[1:])
    graphs = {**given.manifest.graphs, "main": replace(main, tensors=cut)}
    changed = Engine(engine, replace(given.manifest, graphs=graphs))
    with pytest.raises(ArtefactError, match="differ in their tensors of graph `main`") as caught:
        check_source(changed, artefact)
    assert main.tensors.outputs[0].name in caught.value.expected
    ops = {**given.manifest.ops, "moe": 9}
    changed = Engine(engine, replace(given.manifest, ops=ops))
    with pytest.raises(ArtefactError, match="differ in their versions of the ops") as caught:
        check_source(changed, artefact)
    assert (caught.value.found, caught.value.expected) == ("{'moe': 9}", "{'moe': 1}")


def test_a_library_of_another_hash_is_never_loaded(
    engine: Path, library: Path, machine: Flavour, tmp_path: Path
) -> None:
    other = tmp_path / library.name
    other.write_bytes(library.read_bytes() + b"x")
    error = refused(ToolchainError, "not the one this engine was built with", engine, other)
    assert identify(other).sha256[:16] in error.found
    assert identify(library).sha256[:16] in error.expected
    assert machine.module.get_plugin_registry().loaded == []


def test_an_engine_of_shells(library: Path, built_with: Flavour, tmp_path: Path) -> None:
    made = write_engine(tmp_path / "e", shells(), built_with)
    refused(ToolchainError, "plugins do nothing", made, shells())


def test_another_version_of_tensorrt(
    engine: Path, library: Path, machine: Flavour, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = replace(machine, version="1.8.0.1")
    monkeypatch.setattr(trt_open, "open_flavour", lambda _: other)
    error = refused(ToolchainError, "built for another TensorRT", engine, library)
    assert (error.found, error.expected) == ("tensorrt-rtx 1.8.0.1", "tensorrt-rtx 1.7.1.116")


def test_another_gpu(
    engine: Path, library: Path, machine: Flavour, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DS4_HOST_CAPABILITY", "120")
    error = refused(ToolchainError, "built for another GPU", engine, library)
    assert (error.found, error.expected) == ("SM120", "SM80, SM89")


def test_a_larger_pool_than_the_engines(engine: Path, library: Path) -> None:
    refused(CapacityError, "a smaller num_slots", engine, library, num_slots=SLOTS + 1)
    refused(CapacityError, "a smaller max_context", engine, library, max_context=CONTEXT + 1)


@pytest.mark.parametrize("what", ["weights", "activations"])
def test_a_gpu_that_is_too_small_is_found_before_anything_is_allocated(
    engine: Path, library: Path, machine: Flavour, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """Weights, state and I/O before the library is loaded; with the activations once the plan has told them."""
    runner = opened(engine, library)
    memory = runner._memory.memory
    runner.close()
    room = memory.total - (1 if what == "activations" else memory.activations + 1)
    monkeypatch.setenv("DS4_HOST_TOTAL_BYTES", str(room))
    allocated = watch(monkeypatch)
    error = refused(CapacityError, "do not fit into the GPU's memory", engine, library)
    assert ("activations 0 B" in error.expected) == (what == "weights")
    assert allocated == []
    assert machine.module.get_plugin_registry().loaded == []
    monkeypatch.setenv("DS4_HOST_TOTAL_BYTES", str(memory.total + 1024))
    opened(engine, library).close()
    assert allocated


def watch(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    from ds4export.runtime.cuda_device import CudaDevice

    calls: list[int] = []
    allocate: Callable[[CudaDevice, int], int] = CudaDevice.allocate

    def counted(self: CudaDevice, num_bytes: int) -> int:
        calls.append(num_bytes)
        return allocate(self, num_bytes)

    monkeypatch.setattr(CudaDevice, "allocate", counted)
    return calls


def test_a_library_that_lacks_an_op(
    engine: Path, library: Path, machine: Flavour, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = machine.module.get_plugin_registry()
    ops = {n: v for n, v in registry.ops.items() if n != "moe"} | {"embed": 2}
    monkeypatch.setattr(registry, "ops", ops)
    error = refused(ToolchainError, "the plugin library lacks", engine, library)
    assert error.found.startswith("no plugin for moe")
    assert registry.loaded == []


def test_a_plan_with_other_tensors_than_the_manifest(
    engine: Path, library: Path, machine: Flavour, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.runtime.trt_standin import ICudaEngine
    from tests.runtime.trt_standin_builder import DataType

    monkeypatch.setattr(ICudaEngine, "get_tensor_dtype", lambda self, name: DataType.FLOAT)
    error = refused(ArtefactError, "of the plan is not what the manifest says", engine, library)
    assert "FLOAT" in error.found
    assert machine.module.get_plugin_registry().loaded == []


def test_enterprise_engines_are_for_the_gpu_they_were_built_on(
    library: Path, built_with: Flavour, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = replace(built_with, name=ENTERPRISE, version="10.16")
    folder = write_engine(tmp_path / "e", library, own, ("SM90",))
    monkeypatch.setattr(trt_open, "open_flavour", lambda _: own)
    monkeypatch.setattr(trt_open, "open_cuda_device", open_device)
    monkeypatch.setenv("DS4_HOST_CAPABILITY", "90")
    opened(folder, library, backend=ENTERPRISE).close()
    monkeypatch.setenv("DS4_HOST_CAPABILITY", "100")
    error = refused(ToolchainError, "another GPU", folder, library, backend=ENTERPRISE)
    assert (error.found, error.expected) == ("SM100", "SM90")
    monkeypatch.setenv("DS4_HOST_CAPABILITY", "90")
    monkeypatch.setattr(trt_open, "open_flavour", lambda _: replace(own, version="10.17"))
    error = refused(ToolchainError, "another TensorRT", folder, library, backend=ENTERPRISE)
    assert (error.found, error.expected) == ("tensorrt 10.17", "tensorrt 10.16")


@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="this machine has a GPU")
def test_a_real_plan_is_refused_by_the_real_tensorrt_for_want_of_a_driver(
    library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All checks pass, the library is registered, TensorRT says why it cannot go on; nothing stays behind."""
    pytest.importorskip("tensorrt_rtx", reason=RTX_MISSING)
    folder = tmp_path / "e"
    stage.build_engine(exported(**SOURCE), folder, BuildOptions(plugins=library), quiet())
    devices: list[Any] = []

    def open_one() -> Any:
        devices.append(open_device())
        return devices[-1]

    monkeypatch.setattr(trt_open, "open_cuda_device", open_one)
    registry = open_flavour(RTX).module.get_plugin_registry()
    before = len(registry.all_creators)
    error = refused(ToolchainError, "TensorRT cannot read the plan of `main`", folder, library)
    assert "driver" in error.found
    assert len(registry.all_creators) == before
    assert devices[0].free_bytes() == devices[0].facts.total_bytes
    assert devices[0].stream == 0
