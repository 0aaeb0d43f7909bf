"""A second opinion on the lowering: the bodies of all ops, without any plugin, as TensorRT for RTX takes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest

from ds4export.artefact import open_artefact_folder
from ds4export.engine.plan import _RECORD, PlanBuilder, lower, read_graph
from ds4export.engine.profile import DECODE, Sizes, StepShape, profiles_of
from ds4export.engine.standard import FORMS, standard_graph
from ds4export.engine.tensorrt import RTX, open_flavour
from ds4export.errors import ExportError
from tests.engine.kit import RTX_MISSING, quiet
from tests.kit.artefacts import CONTEXT, exported

ONE_TOKEN = Sizes(CONTEXT, 1, {DECODE: StepShape((1, 1, 1), (1, 1, 1))})


def tiny_a(layers: tuple[int, int] | None = None) -> Path:
    return exported("tiny-a", official=True, layers=layers)


def main_of(folder: Path) -> Path:
    return open_artefact_folder(folder).graph_path("main")


def decode_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """The one shape of every dynamic input: a step of one sequence by one token."""
    manifest = open_artefact_folder(folder).manifest
    spans = profiles_of(manifest.graphs["main"], manifest.config, ONE_TOKEN)[DECODE]
    return {name: most for name, (_, _, most) in spans.items()}


def rtx_builder() -> PlanBuilder:
    pytest.importorskip("tensorrt_rtx", reason=RTX_MISSING)
    return PlanBuilder(open_flavour(RTX), ("SM120",), quiet())


def tensors_of(network: Any) -> dict[str, tuple[str, tuple[int, ...]]]:
    """By name: type and shape of every input and output of a network."""
    inputs = (network.get_input(i) for i in range(network.num_inputs))
    outputs = (network.get_output(i) for i in range(network.num_outputs))
    return {t.name: (t.dtype.name, tuple(t.shape)) for t in (*inputs, *outputs)}


def tensors_of_the_plugin_engine(
    path: Path, shapes: dict[str, tuple[int, ...]]
) -> dict[str, tuple[str, tuple[int, ...]]]:
    """The same of the lowered graph, its dimensions those of `shapes`."""
    graph: Any = lower(read_graph(path)).graph
    sizes = {
        str(dim): number
        for value in graph.inputs
        if value.name in shapes
        for dim, number in zip(value.shape, shapes[value.name], strict=True)
    }
    return {
        v.name: (
            str(v.dtype).replace("BFLOAT16", "BF16"),
            tuple(d if isinstance(d, int) else sizes[str(d)] for d in v.shape),
        )
        for v in (*graph.inputs, *graph.outputs)
    }


def assert_no_plugins(network: Any) -> None:
    kinds = {str(network.get_layer(i).type) for i in range(network.num_layers)}
    assert not [kind for kind in kinds if "PLUGIN" in kind]


def test_the_whole_engine_is_built_without_a_plugin():
    """Built ahead of time for a step of one token, all layers and the head in one engine; not run."""
    builder = rtx_builder()
    shapes, path = decode_shapes(tiny_a()), main_of(tiny_a())
    network = builder._parse("main", standard_graph(read_graph(path), shapes))
    assert_no_plugins(network)
    assert tensors_of(network) == tensors_of_the_plugin_engine(path, shapes)
    plan = builder.builder.build_serialized_network(network, builder._config({}))
    assert plan is not None, builder.messages.text()
    content = bytes(plan)
    assert not _RECORD.search(content)
    assert all(name.encode() in content for name in shapes)


def test_every_body_is_taken_with_its_loops_and_named_dimensions():
    """Parsed, not built: the builder fails on the loops."""
    builder, path = rtx_builder(), main_of(tiny_a())
    network = builder._parse("main", standard_graph(read_graph(path)))
    assert_no_plugins(network)
    lowered: dict[Any, Any] = {v.name: v for v in lower(read_graph(path)).graph.outputs}
    assert network.num_outputs == len(lowered)
    for output in map(network.get_output, range(network.num_outputs)):
        assert output.dtype.name == str(lowered[output.name].dtype).replace("BFLOAT16", "BF16")
        assert len(output.shape) == len(lowered[output.name].shape)


def test_a_graph_without_its_bodies_is_refused():
    with pytest.raises(ExportError, match="no body of standard operators") as caught:
        standard_graph(lower(read_graph(main_of(tiny_a((0, 1))))))
    assert "moe" in caught.value.found


def test_an_input_without_a_fixed_shape_is_refused():
    with pytest.raises(ExportError, match="`ids` has no fixed shape") as caught:
        standard_graph(read_graph(main_of(tiny_a((0, 1)))), {})
    assert "B" in caught.value.found


def test_a_loop_that_hangs_on_values_is_refused(monkeypatch: pytest.MonkeyPatch):
    """As the loop of `moe` over the experts that are used."""
    monkeypatch.delitem(FORMS, "moe")
    shapes = decode_shapes(tiny_a((0, 1)))
    with pytest.raises(ExportError, match="number of iterations hangs on values"):
        standard_graph(read_graph(main_of(tiny_a((0, 1)))), shapes)


def test_no_loop_and_no_float8_cast_is_left():
    shapes = decode_shapes(tiny_a((0, 1)))
    graph = standard_graph(read_graph(main_of(tiny_a((0, 1)))), shapes).graph
    assert not [n.name for n in graph if n.op_type in ("Loop", "NonZero")]
    float8 = {ir.DataType.FLOAT8E4M3FN.value}
    casts = [n for n in graph if n.op_type == "Cast"]
    assert casts
    assert not [n.name for n in casts if n.attributes["to"].as_int() in float8]
