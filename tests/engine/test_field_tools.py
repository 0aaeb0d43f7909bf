"""The exported graphs in the tools of the field: ONNX GraphSurgeon edits them, Polygraphy shows and builds them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnx_ir as ir
import onnxruntime as ort
import pytest

from ds4export.artefact import Artefact, open_artefact_folder
from ds4export.artefact.manifest import WEIGHT
from ds4export.engine.plan import PlanBuilder, lower, read_graph
from ds4export.engine.plugins import identify, loaded
from ds4export.engine.profile import profiles_of, sizes_of_artefact
from ds4export.engine.tensorrt import RTX, open_flavour
from ds4export.onnx_names import DOMAIN
from ds4export.runtime.kv_cache import allocate_state
from ds4export.runtime.ort_values import numpy_value, ort_value
from tests.engine.kit import RTX_MISSING, quiet, shells
from tests.kit.artefacts import exported

LAYERS = (0, 2)  # a window layer and one with an indexer; no head, so few weights


@pytest.fixture(scope="module")
def artefact() -> Artefact:
    return open_artefact_folder(exported("nano", official=True, layers=LAYERS))


def feeds_of(artefact: Artefact) -> dict[str, np.ndarray]:
    """A chunk of four tokens over the artefact's weights and an empty pool."""
    inputs = artefact.manifest.graphs["main"].inputs
    feeds = {i.name: artefact.weight(i) for i in inputs if i.kind == WEIGHT}
    feeds |= allocate_state(artefact.manifest, 1, 16)
    feeds |= {
        "ids": np.array([[5, 6, 7, 8]]),
        "slots": np.array([0]),
        "positions": np.array([0]),
        "num_new": np.array([4]),
        "logit_rows": np.array([[3]]),
    }
    return {i.name: feeds[i.name] for i in inputs}


def outputs_of(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What plain ONNX Runtime computes; the states of `feeds` are read, never written."""
    session = ort.InferenceSession(model.SerializeToString())
    names = [o.name for o in session.get_outputs()]
    kept = {name: np.array(array) for name, array in feeds.items()}
    made = session.run_with_ort_values(names, {n: ort_value(a) for n, a in kept.items()})
    return {n: numpy_value(v) for n, v in zip(names, made, strict=True)}


def ds4_nodes(model: onnx.ModelProto) -> list[tuple[Any, ...]]:
    """Every node of ours, those in functions too: names of what it takes and gives, attributes in full."""
    places = [model.graph.node, *(f.node for f in model.functions)]
    return sorted(
        (
            *(n.op_type, n.overload, tuple(n.input), tuple(n.output)),
            tuple(sorted(a.SerializeToString(deterministic=True) for a in n.attribute)),
        )
        for place in places
        for n in place
        if n.domain == DOMAIN
    )


def edited(model: onnx.ModelProto) -> onnx.ModelProto:
    """Through GraphSurgeon, as its users end every edit."""
    made: onnx.ModelProto = gs.export_onnx(gs.import_onnx(model).cleanup().toposort())
    onnx.checker.check_model(made)
    return made


def test_the_artefacts_graph_goes_through_graphsurgeon(artefact: Artefact) -> None:
    model = onnx.load(artefact.graph_path("main"))
    made = edited(model)
    assert {f.name for f in made.functions} == {f.name for f in model.functions}
    assert ds4_nodes(made) == ds4_nodes(model) != []
    feeds = feeds_of(artefact)
    want, got = outputs_of(model, feeds), outputs_of(made, feeds)
    assert list(got) == list(want)
    assert any(n.startswith("state.") for n in want)
    for name, array in want.items():
        assert np.any(array.astype(np.float32))
        assert got[name].tobytes() == array.tobytes(), name


def test_a_value_within_becomes_an_output(artefact: Artefact) -> None:
    """The edit that the how-to page shows: the graph says what streams it has after the first half layer."""
    model, feeds = onnx.load(artefact.graph_path("main")), feeds_of(artefact)
    graph = gs.import_onnx(model)
    node = next(n for n in graph.nodes if n.name == "layers.0/attn")
    graph.outputs.append(node.outputs[0])
    made: onnx.ModelProto = gs.export_onnx(graph.cleanup().toposort())
    onnx.checker.check_model(made)
    want, got = outputs_of(model, feeds), outputs_of(made, feeds)
    tapped = got.pop(node.outputs[0].name)
    assert tapped.shape == want["streams"].shape
    assert tapped.tobytes() != want["streams"].tobytes()
    assert {n: a.tobytes() for n, a in got.items()} == {n: a.tobytes() for n, a in want.items()}


def test_a_lost_attribute_is_seen(artefact: Artefact) -> None:
    """Without this, equal lists of nodes could be lists of too little."""
    model = onnx.load(artefact.graph_path("main"))
    changed = onnx.load(artefact.graph_path("main"))
    node = next(n for f in changed.functions for n in f.node if n.op_type == "hc_pre")
    del node.attribute[0]
    assert ds4_nodes(changed) != ds4_nodes(model)


@pytest.fixture(scope="module")
def lowered(artefact: Artefact) -> onnx.ModelProto:
    """What TensorRT is given: a flat graph of ds4 nodes."""
    return ir.to_proto(lower(read_graph(artefact.graph_path("main"))))


def test_the_lowered_graph_goes_through_graphsurgeon_and_still_builds(
    artefact: Artefact, lowered: onnx.ModelProto
) -> None:
    made = edited(lowered)
    assert ds4_nodes(made) == ds4_nodes(lowered)
    assert len(ds4_nodes(made)) == len(made.graph.node)
    assert {n.name for n in made.graph.node} == {n.name for n in lowered.graph.node}
    pytest.importorskip("tensorrt_rtx", reason=RTX_MISSING)
    manifest, trt = artefact.manifest, open_flavour(RTX)
    profiles = profiles_of(manifest.graphs["main"], manifest.config, sizes_of_artefact(manifest))
    builder = PlanBuilder(trt, ("SM120",), quiet())
    with loaded(shells(), identify(shells()), trt.module):
        plan = builder.build("main", ir.from_proto(made), profiles)
    assert plan.plugin_records == len(made.graph.node) * len(profiles)


def polygraphy(*arguments: object, script: str = "") -> str:
    """What Polygraphy prints, in a process of its own: it decides when it is imported which TensorRT is meant."""
    program = script or "from polygraphy.tools import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        env={**os.environ, "POLYGRAPHY_USE_TENSORRT_RTX": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_polygraphy_shows_the_graph(artefact: Artefact, tmp_path: Path, lowered: Any) -> None:
    path = tmp_path / "lowered.onnx"
    onnx.save(lowered, path)
    for shown in (artefact.graph_path("main"), path):
        model = onnx.load(shown)
        text = polygraphy("inspect", "model", shown, "--show", "layers", "attrs")
        assert f"{len(model.graph.input)} Graph Input(s)" in text
        assert f"{len(model.graph.node)} Node(s)" in text
        for node in model.graph.node:
            assert f"{node.name} [Op: {node.op_type}" in text
    assert "iterations" in text  # of hc_pre: the attributes are shown


BUILD = """
import sys
from pathlib import Path

from ds4export.engine.plugins import identify, loaded
from ds4export.engine.tensorrt import RTX, open_flavour
from polygraphy.backend.tensorrt_rtx import create_config_rtx
from polygraphy.backend.trt import Profile, engine_bytes_from_network, network_from_onnx_path
from polygraphy.backend.trt.util import get_trt_logger

graph, library, *shapes = sys.argv[1:]
trt = open_flavour(RTX).module
builder = trt.Builder(get_trt_logger())
profile = Profile()
for name, *sizes in (text.split("=") for text in shapes):
    profile.add(name, *(tuple(map(int, size.split(","))) for size in sizes))
with loaded(Path(library), identify(Path(library)), trt):
    built, network, parser = network_from_onnx_path(graph)
    names = [network.get_layer(i).name for i in range(network.num_layers)]
    config = create_config_rtx(
        built,
        network,
        profiles=[profile],
        compute_capabilities=[(12, 0)],
        preview_features=[trt.PreviewFeature.ALIASED_PLUGIN_IO_10_03],
    )
    plan = bytes(engine_bytes_from_network((built, network), lambda *_: config))
print("LAYERS", *names)
print("RECORDS", plan.count(b"_pluginType") + plan.count(b"PluginType"))
"""


def test_polygraphy_builds_the_lowered_graph_with_our_plugins(
    artefact: Artefact, lowered: onnx.ModelProto, tmp_path: Path
) -> None:
    """A second builder over the same graph and library: layers under the model's names, a plugin for every node."""
    pytest.importorskip("tensorrt_rtx", reason=RTX_MISSING)
    onnx.save(lowered, tmp_path / "lowered.onnx")
    manifest = artefact.manifest
    profiles = profiles_of(manifest.graphs["main"], manifest.config, sizes_of_artefact(manifest))
    shapes = [
        "=".join([name, *(",".join(map(str, shape)) for shape in spans)])
        for name, spans in profiles["decode"].items()
    ]
    told = polygraphy(tmp_path / "lowered.onnx", shells(), *shapes, script=BUILD).splitlines()
    found = {line.split()[0]: line.split()[1:] for line in told if line.split()}
    nodes = [n.name for n in lowered.graph.node]
    assert set(nodes) <= set(found["LAYERS"])
    assert found["RECORDS"] == [str(len(nodes))]
