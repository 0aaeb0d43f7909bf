"""A second opinion on the lowering: the bodies of all ops, as TensorRT for RTX reads them without any plugin."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from ds4export.artefact import open_artefact_folder
from ds4export.engine.plan import PlanBuilder, lower, read_graph
from ds4export.engine.standard import standard_graph
from ds4export.engine.tensorrt import RTX, open_flavour
from ds4export.errors import ExportError
from tests.engine.kit import RTX_MISSING, quiet
from tests.kit.artefacts import exported


def graph_of(layers=None) -> Path:
    opened = open_artefact_folder(exported("tiny-a", official=True, layers=layers))
    return opened.graph_path("main")


def test_every_body_is_taken_without_a_plugin():
    """Parsed, not built: what the builder makes of it stands in docs/log.md."""
    pytest.importorskip("tensorrt_rtx", reason=RTX_MISSING)
    path = graph_of()
    model = standard_graph(read_graph(path))
    builder = PlanBuilder(open_flavour(RTX), ("SM120",), quiet())
    network = builder._parse("main", model)
    kinds = {str(network.get_layer(i).type) for i in range(network.num_layers)}
    assert not [kind for kind in kinds if "PLUGIN" in kind]
    lowered: dict[Any, Any] = {v.name: v for v in lower(read_graph(path)).graph.outputs}
    assert network.num_outputs == len(lowered)
    for output in map(network.get_output, range(network.num_outputs)):
        assert output.dtype.name == str(lowered[output.name].dtype).replace("BFLOAT16", "BF16")
        assert len(output.shape) == len(lowered[output.name].shape)


def moe_alone(path: Path) -> ir.Model:
    """The first `moe` of the graph with its body: two sequences of three tokens."""
    model = read_graph(path)
    node: Any = next(n for n in lower(read_graph(path)).graph if n.op_type == "moe")
    inputs = [
        ir.Value(
            name=v.name,
            type=v.type,
            shape=ir.Shape([d if isinstance(d, int) else {"B": 2}.get(str(d), 3) for d in v.shape]),
        )
        for v in node.inputs
    ]
    new = ir.Node(node.domain, node.op_type, inputs, list(node.attributes.values()))
    new.outputs[0].name, new.outputs[0].type = "y", node.outputs[0].type
    body = [f for f in model.functions.values() if f.name == "moe"]
    opsets = {"": 21, "ds4": 1}
    graph = ir.Graph(inputs, new.outputs, nodes=[new], opset_imports=opsets, name="moe")
    return ir.Model(graph, ir_version=10, functions=body)


def run_moe(model: ir.Model, feeds: dict[str, np.ndarray]) -> np.ndarray:
    inputs: Any = model.graph.inputs
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString())
    values = {
        v.name: ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array, v.dtype.value)
        for v, array in zip(inputs, feeds.values(), strict=True)
    }
    return session.run_with_ort_values(["y"], values)[0].numpy()


def test_the_dense_moe_computes_the_same():
    path = graph_of((0, 1))
    plain, dense = moe_alone(path), moe_alone(path)
    standard_graph(dense)
    assert "NonZero" not in {n.op_type for n in dense.graph}
    inputs: Any = plain.graph.inputs
    x, weights, indices, packed, scales, rows, _ = inputs
    rng = np.random.default_rng(0)
    experts = rows.shape[0]
    bf16 = rng.standard_normal(tuple(x.shape)).astype(np.float32).view(np.uint32) >> 16
    feeds: dict[str, Any] = {
        "x": bf16.astype(np.uint16),
        "weights": rng.random(tuple(weights.shape)).astype(np.float32),
        "indices": rng.integers(0, experts, tuple(indices.shape)),
        "packed": rng.integers(-128, 128, tuple(packed.shape)).astype(np.int8),
        "scales": rng.integers(118, 124, tuple(scales.shape)).astype(np.int8),
        "rows": np.arange(experts),
        "num_new": np.array([3, 1]),  # the second sequence has two tokens of padding
    }
    expected, found = run_moe(plain, feeds), run_moe(dense, feeds)
    assert np.count_nonzero(expected)
    assert np.array_equal(found, expected)


def test_a_graph_without_its_bodies_is_refused():
    path = graph_of((0, 1))
    with pytest.raises(ExportError, match="no body of standard operators") as caught:
        standard_graph(lower(read_graph(path)))
    assert "moe" in caught.value.found
