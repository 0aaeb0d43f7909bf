"""Small models to rewrite: one body under the name `probe`, called by nodes of given input shapes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray

from ds4export.graph.verify import DOMAIN, IR_VERSION, OPSET, VERSIONS
from ds4export.ops._body import FLOAT, INT64, Body, BodyOptions, T

Dims = Sequence[int | str]
Maker = Callable[..., "T | tuple[T, ...]"]
SIZES = {"B": 2, "T": 3, "S": 4, "R": 1}  # symbolic dimensions when a model runs
LEVELS = (
    ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
)


@dataclass(frozen=True)
class Call:
    """One node: the shapes of its inputs, by the names that the body gives them; `int_` names are INT64."""

    dims: Mapping[str, Dims]


def call(**dims: Dims) -> Call:
    return Call(dims)


def probe(make: Maker, *calls: Call) -> ir.Model:
    """A model whose body is `make(*inputs)`; every call has inputs and outputs of its own."""
    names = list(calls[0].dims)
    body = Body(BodyOptions(official=False))
    inputs = [body.input(name, _dtype(name)) for name in names]
    made = make(*inputs)
    outs = [body.op("Identity", v, dtype=v.dtype) for v in _all(made)]
    for i, out in enumerate(outs):
        out.value.name = f"y{i or ''}"
    graph = ir.Graph(
        [v.value for v in inputs],
        [v.value for v in outs],
        nodes=body.nodes,
        name="probe",
        opset_imports={"": OPSET},
    )
    function = ir.Function(DOMAIN, "probe", graph=graph, attributes=[])
    nodes = [_node(n, c, names, len(outs)) for n, c in enumerate(calls)]
    return model_of(nodes, [function])


def model_of(nodes: Sequence[ir.Node], functions: Sequence[ir.Function]) -> ir.Model:
    """A model of these nodes: what they read and nobody makes are inputs, what they make are outputs."""
    made = [v for n in nodes for v in n.outputs]
    read = dict.fromkeys(v for n in nodes for v in n.inputs if v is not None and v not in made)
    graph = ir.Graph(list(read), made, nodes=nodes, opset_imports=dict(VERSIONS), name="test")
    return ir.Model(graph, ir_version=IR_VERSION, functions=list(functions))


def value(name: str, dims: Dims, dtype: ir.DataType = FLOAT) -> ir.Value:
    return ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(dims))


def _all(made: T | tuple[T, ...]) -> tuple[T, ...]:
    return made if isinstance(made, tuple) else (made,)


def _dtype(name: str) -> ir.DataType:
    return INT64 if name.startswith("int_") else FLOAT


def _node(number: int, one: Call, names: Sequence[str], num_outputs: int) -> ir.Node:
    inputs = [value(f"{name}.{number}", one.dims[name], _dtype(name)) for name in names]
    node = ir.Node(DOMAIN, "probe", inputs, num_outputs=num_outputs, name=f"probe.{number}")
    for i, out in enumerate(node.outputs):
        out.name = f"out.{number}.{i}"
    return node


def outputs(
    model: ir.Model, level: ort.GraphOptimizationLevel, seed: int
) -> dict[str, NDArray[np.float32]]:
    """What ONNX Runtime makes of random inputs."""
    rng = np.random.default_rng(seed)
    feeds = {v.name or "": _random(v, rng) for v in model.graph.inputs}
    options = ort.SessionOptions()
    options.graph_optimization_level = level
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), options)
    names = [o.name for o in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


def _random(v: ir.Value, rng: np.random.Generator) -> NDArray[np.float32] | NDArray[np.int64]:
    assert v.shape is not None, f"{v.name} has no shape"
    shape = [d if isinstance(d, int) else SIZES[str(d)] for d in v.shape]
    if v.dtype == INT64:
        return rng.integers(0, 3, shape, np.int64)
    return rng.standard_normal(shape, np.float32)
