"""Engines really built ahead of time, where TensorRT for RTX is installed; their plugins are shells."""

from __future__ import annotations

import gc
import io
from collections import Counter
from dataclasses import replace
from pathlib import Path

import onnx_ir as ir
import pytest

from ds4export.artefact import open_artefact_folder
from ds4export.engine.build import BuildOptions, build_engine
from ds4export.engine.plan import PlanBuilder, lower, read_graph
from ds4export.engine.plugins import DOES_NOTHING, identify, loaded
from ds4export.engine.profile import profiles_of, sizes_of_artefact
from ds4export.engine.reader import check_library, open_engine
from ds4export.engine.tensorrt import RTX, RTX_TARGETS, open_flavour
from ds4export.errors import Ds4Error, ExportError, RuntimeInputError, ToolchainError
from ds4export.passes import run_pass
from ds4export.passes.inline_layers import inline_layers
from ds4export.report import Reporter
from tests.engine.kit import RTX_MISSING, built, quiet, shells
from tests.kit.artefacts import exported


def refused(source: Path, target: Path, **options) -> Ds4Error:
    with pytest.raises(Ds4Error) as caught:
        build_engine(source, target, BuildOptions(**options), quiet())
    assert not target.exists()
    return caught.value


@pytest.mark.parametrize(
    ("name", "layers"), [("tiny-a", None), ("nano", None), ("nano", (1, 3)), ("tiny-c", None)]
)
def test_builds_with_a_plugin_for_every_node(name, layers):
    source = open_artefact_folder(exported(name, official=True, layers=layers)).manifest
    engine = open_engine(built(name, layers))
    m = engine.manifest
    assert m.flavour == RTX
    assert m.targets == RTX_TARGETS
    assert m.plugins.kind == DOES_NOTHING
    assert m.source.hash == source.hash
    assert m.ops == source.ops
    assert set(m.graphs) == set(source.graphs)
    for name_of_graph, graph in m.graphs.items():
        lowered = lower(
            read_graph(
                exported(name, official=True, layers=layers) / source.graphs[name_of_graph].file
            )
        )
        assert graph.nodes == Counter(n.op_type for n in lowered.graph)
        assert graph.plugin_records == len(lowered.graph) * 2  # decode and prefill
        assert set(graph.profiles) == {"decode", "prefill"}


def test_engine_layers_keep_the_names_of_the_models_layers():
    engine = open_engine(built("nano"))
    names = (engine.path / engine.manifest.graphs["main"].layers_file).read_text().splitlines()
    assert len(names) == sum(engine.manifest.graphs["main"].nodes.values())
    assert names[0] == "embed/embed"
    assert "layers.1/attn/hc_pre" in names
    assert {name.split("/")[0] for name in names} >= {f"layers.{i}" for i in range(4)}


def test_two_builds_are_the_same_engine_up_to_tensorrts_numbering(tmp_path):
    """Plans of graphs with symbolic dimensions differ in a few hundred bytes from build to build, not in size."""
    again = tmp_path / "again"
    source = exported("nano", official=True, layers=(1, 3))
    pytest.importorskip("tensorrt_rtx", reason=RTX_MISSING)
    build_engine(source, again, BuildOptions(plugins=shells()), quiet())
    gc.collect()  # TensorRT keeps the first logger of the process: a builder that goes must not take it along
    first, second = (open_engine(e).manifest for e in (built("nano", (1, 3)), again))
    assert second.files.keys() == first.files.keys()
    assert second.files["main.layers.txt"] == first.files["main.layers.txt"]
    assert replace(second, files={}, created="") == replace(first, files={}, created="")


def test_weights_stay_outside_even_of_a_self_contained_artefact(tmp_path):
    pytest.importorskip("tensorrt_rtx", reason=RTX_MISSING)
    source = exported("nano", official=True, layers=(1, 3), self_contained=True)
    build_engine(source, tmp_path / "e", BuildOptions(plugins=shells()), quiet())
    plan, other = open_engine(tmp_path / "e"), open_engine(built("nano", (1, 3)))
    sizes = [e.manifest.graphs["main"].plan_bytes for e in (plan, other)]
    assert sizes[0] == sizes[1] == len(plan.read_plan("main"))


def test_each_stage_says_its_facts(tmp_path):
    pytest.importorskip("tensorrt_rtx", reason=RTX_MISSING)
    stream = io.StringIO()
    source = exported("nano", official=True, layers=(1, 3))
    reporter = Reporter(num_stages=4, stream=stream)
    build_engine(source, tmp_path / "e", BuildOptions(plugins=shells()), reporter)
    text = stream.getvalue()
    facts = ("[1/4] artefact", "for SM80, SM86", "does-nothing", "plugins in", "inputs, plan")
    for fact in (*facts, "peak memory", "[4/4] write"):
        assert fact in text, text


def test_a_library_without_an_op_is_refused_with_the_list(tmp_path):
    pytest.importorskip("tensorrt_rtx", reason=RTX_MISSING)
    library = shells("moe", "attention_csa")
    error = refused(exported("nano", official=True), tmp_path / "e", plugins=library)
    assert isinstance(error, ToolchainError)
    assert error.what == "the plugin library lacks 2 of the 25 ops of this artefact"
    assert error.found == "no plugin for attention_csa, moe"


def test_a_library_without_an_op_that_the_artefact_does_not_use_is_fine(tmp_path):
    pytest.importorskip("tensorrt_rtx", reason=RTX_MISSING)
    source = exported("nano", official=True, layers=(1, 3))
    ops = open_artefact_folder(source).manifest.ops
    assert "mtp_merge" not in ops
    options = BuildOptions(plugins=shells("mtp_merge"))
    assert build_engine(source, tmp_path / "e", options, quiet()).ops == ops


def test_without_the_library_the_parser_refuses():
    """A build that goes on without plugins would be worth nothing."""
    pytest.importorskip("tensorrt_rtx", reason=RTX_MISSING)
    artefact = open_artefact_folder(exported("nano", official=True, layers=(1, 3)))
    manifest = artefact.manifest
    profiles = profiles_of(manifest.graphs["main"], manifest.config, sizes_of_artefact(manifest))
    builder = PlanBuilder(open_flavour(RTX), ("SM120",), quiet())
    with pytest.raises(ExportError, match="ONNX parser refuses") as caught:
        builder.build("main", lower(read_graph(artefact.graph_path("main"))), profiles)
    assert "hc_pre" in caught.value.found or "plugin" in caught.value.found.lower()


def test_bodies_that_would_replace_plugins_are_noticed():
    """With its bodies left in, a graph builds without a single plugin: the count of records says so."""
    pytest.importorskip("tensorrt_rtx", reason=RTX_MISSING)
    flavour = open_flavour(RTX)
    artefact = open_artefact_folder(exported("nano", official=True, layers=(0, 1)))
    model = ir.load(artefact.graph_path("main"))
    model, _ = run_pass(model, inline_layers)
    manifest = artefact.manifest
    profiles = profiles_of(manifest.graphs["main"], manifest.config, sizes_of_artefact(manifest))
    builder = PlanBuilder(flavour, ("SM120",), quiet())
    library = shells()
    with loaded(library, identify(library), flavour.module), pytest.raises(ExportError) as caught:
        builder.build("main", model, profiles)
    assert "does not hold every plugin" in caught.value.what or "refuses" in caught.value.what


def test_float32_is_refused_in_one_sentence(tmp_path):
    pytest.importorskip("tensorrt_rtx", reason=RTX_MISSING)
    error = refused(exported("nano"), tmp_path / "e")
    assert (
        error.what
        == "engines are built from artefacts in official numerics, and this one is float32"
    )
    assert "--numerics official" in error.hint


def test_a_gpu_that_tensorrt_for_rtx_cannot_name(tmp_path):
    pytest.importorskip("tensorrt_rtx", reason=RTX_MISSING)
    error = refused(exported("nano", official=True), tmp_path / "e", targets=("SM90",))
    assert isinstance(error, RuntimeInputError)
    assert (error.found, error.expected) == ("SM90", ", ".join(RTX_TARGETS))


def test_an_engine_of_shells_is_not_taken_for_one_that_computes():
    with pytest.raises(ToolchainError, match="plugins do nothing"):
        check_library(open_engine(built("nano", (1, 3))), shells())


def test_nothing_is_overwritten(tmp_path):
    target = tmp_path / "e"
    target.mkdir()
    with pytest.raises(Ds4Error, match="there is something"):
        build_engine(exported("nano", official=True), target, BuildOptions(), quiet())
