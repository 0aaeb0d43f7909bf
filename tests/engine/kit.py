"""What engine tests share: the library of shells, compiled once, and an engine folder made without TensorRT."""

from __future__ import annotations

import atexit
import io
import shutil
import tempfile
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from ds4export.artefact import open_artefact_folder
from ds4export.artefact.writer import staged_folder
from ds4export.engine import build as stage
from ds4export.engine.build import BuildOptions, build_engine
from ds4export.engine.manifest import EngineManifest
from ds4export.engine.plan import BuiltPlan, lower, read_graph
from ds4export.engine.plugins import KERNELS, PluginLibrary
from ds4export.engine.profile import sizes_of_artefact
from ds4export.engine.shells import build_shells
from ds4export.engine.tensorrt import RTX, RTX_TARGETS, Flavour
from ds4export.errors import ToolchainError
from ds4export.report import Reporter
from tests.kit.artefacts import exported

LIBRARY = PluginLibrary("libds4plugins_trt10.so", "ab" * 32, 1000, KERNELS)
PLAN = b"a plan" * 50  # of engine folders that no TensorRT has made
RTX_MISSING = "TensorRT for RTX is not installed: pip install 'ds4export[tensorrt-rtx]'"


@cache
def root() -> Path:
    folder = tempfile.mkdtemp(prefix="ds4export-engine-tests-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


@cache
def _shells(without: tuple[str, ...]) -> Path | ToolchainError:
    folder = root() / f"shells-{'-'.join(without) or 'all'}"
    folder.mkdir()
    try:
        return build_shells(folder, without)
    except ToolchainError as error:
        return error


def shells(*without: str) -> Path:
    """The library of shells, some ops left out; skips where it cannot be compiled."""
    library = _shells(without)
    if isinstance(library, ToolchainError):
        pytest.skip(f"{library.what}; `make plugins` installs what is missing")
    return library


def built(name: str, layers: tuple[int, int] | None = None) -> Path:
    """The engine of a checkpoint, its plugins shells, built by TensorRT for RTX. Shared: take a copy to change it."""
    pytest.importorskip("tensorrt_rtx", reason=RTX_MISSING)
    return _built(name, layers)


@cache
def _built(name: str, layers: tuple[int, int] | None) -> Path:
    target = root() / f"{name}-{layers}"
    source = exported(name, official=True, layers=layers)
    build_engine(source, target, BuildOptions(plugins=shells()), quiet())
    return target


def quiet() -> Reporter:
    return Reporter(num_stages=stage.NUM_STAGES, stream=io.StringIO())


@cache
def folder_without_tensorrt() -> Path:
    """A sound engine folder whose plans no TensorRT has made: for checks that never look into a plan."""
    target = root() / "made-up"
    with staged_folder(target) as folder:
        made_up(folder)
    return target


def made_up(folder: Path, library: PluginLibrary = LIBRARY) -> EngineManifest:
    artefact = open_artefact_folder(exported("nano", official=True, layers=(0, 1)))
    manifest = artefact.manifest
    sizes = sizes_of_artefact(manifest)
    job = stage._Job(manifest, manifest.hash, sizes, RTX_TARGETS, "", Path(library.file), library)
    plans = {}
    for name in manifest.graphs:
        model = lower(read_graph(artefact.graph_path(name)))
        nodes: dict[str, int] = {}
        for node in model.graph:
            nodes[node.op_type] = nodes.get(node.op_type, 0) + 1
        layers = tuple(n.name or "" for n in model.graph)
        records = len(layers) * len(sizes.steps)
        plans[name] = BuiltPlan(PLAN, nodes, layers, records, len(model.graph.inputs), 0)
    return stage._write(folder, job, Flavour(RTX, "1.7.1.116", None), plans)


def copy_of_engine(source: Path, target: Path) -> Path:
    return Path(shutil.copytree(source, target))


def replace_kind(library: PluginLibrary, kind: str) -> PluginLibrary:
    return replace(library, kind=kind)
