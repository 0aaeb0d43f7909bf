"""What TensorRT for RTX builds from standard operators computes what the artefact computes: in ONNX Runtime."""

from __future__ import annotations

from dataclasses import asdict

import ml_dtypes
import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from torch import Tensor

from ds4export.artefact.manifest import STATE, WEIGHT
from ds4export.engine.plan import read_graph
from ds4export.engine.standard import FORMS, standard_graph
from ds4export.onnx_names import DOMAIN
from ds4export.ops._body import E4M3, OPSET, Body, BodyOptions
from ds4export.ops._define import Case, OpDef
from ds4export.runtime.onnx_runner import OnnxRunner
from ds4export.runtime.ort_values import numpy_value, ort_value
from ds4export.runtime.runner import StepInputs
from tests.engine.test_standard import decode_shapes, main_of
from tests.kit.artefacts import exported, open_runner
from tests.kit.compare import assert_close
from tests.kit.ops import (
    IR_VERSION,
    Call,
    call_op,
    every_case,
    live_rows,
    make_call,
    run_body,
    run_bound,
    unwritten_like,
)

# The rewritten ops, one that rounds through float8, one with an int8 table, one whose loop runs more than once.
OPS = (*FORMS, "linear_fp8", "index_query", "grouped_linear")
WHOLE_STEP = (
    1e-5  # float32 sums of four numbers and of two experts in another order, through five layers
)
NUMPY = {
    torch.float32: np.dtype(np.float32),
    torch.bfloat16: np.dtype(ml_dtypes.bfloat16),
    torch.int64: np.dtype(np.int64),
    torch.int8: np.dtype(np.int8),
}


def session_of(model: ir.Model) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(ir.to_proto(model).SerializeToString(), options)


def standard_model(call: Call, options: BodyOptions, like: dict[str, Tensor]) -> ir.Model:
    """One node with its body, at the shapes of its case, in standard operators."""
    inputs = [_value(name, tensor) for name, tensor in call.inputs.items()]
    attributes = [ir.convenience.convert_attribute(k, v) for k, v in call.attributes.items()]
    node = ir.Node(DOMAIN, call.op.name, inputs, attributes, num_outputs=len(like))
    for output, (name, tensor) in zip(node.outputs, like.items(), strict=True):
        output.name, output.type = name, _value(name, tensor).type
    opsets = {"": OPSET, DOMAIN: call.op.version}
    graph = ir.Graph(inputs, node.outputs, nodes=[node], name="one", opset_imports=opsets)
    body = call.op.function(call.attributes, options)
    return standard_graph(ir.Model(graph, ir_version=IR_VERSION, functions=[body]), {})


def _value(name: str, tensor: Tensor) -> ir.Value:
    dtype = ir.DataType.from_numpy(NUMPY[tensor.dtype])
    return ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(tensor.shape))


@pytest.mark.parametrize(("op", "case", "options"), every_case(*OPS))
def test_an_op_in_standard_operators_gives_what_its_body_gives(
    op: OpDef, case: Case, options: BodyOptions
) -> None:
    call = make_call(op, case, official=options.official)
    like = call_op(call)
    want = live_rows(call, run_body(call, options, like))
    made = {name: unwritten_like(tensor) for name, tensor in like.items()}
    inputs = {name: tensor.contiguous() for name, tensor in call.inputs.items()}
    run_bound(session_of(standard_model(call, options, like)), inputs, made)
    bound = op.tolerance.official if options.official else op.tolerance.float32
    for name, got in live_rows(call, made).items():
        assert_close(got, want[name], relative=bound, what=name)


def test_rounding_through_float8_is_that_of_the_casts():
    """Every e4m3 value, every middle between two, and a little to either side of it: in all binades, NaN too."""
    codes = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    values = np.sort(codes[np.isfinite(codes)])
    middles = (values[1:] + values[:-1]) / 2
    x = np.concatenate([values, middles, middles * 1.001, middles * 0.999, [np.nan]])
    x = x.astype(np.float32).clip(-448, 448)
    body = Body(BodyOptions(official=True))
    start = body.input("x", ir.DataType.FLOAT)
    start.value.type, start.value.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(x.shape)
    made = start.cast(E4M3).cast(ir.DataType.FLOAT)
    made.value.type = ir.TensorType(ir.DataType.FLOAT)
    graph = ir.Graph(
        [start.value], [made.value], nodes=body.nodes, name="casts", opset_imports={"": OPSET}
    )
    model = standard_graph(ir.Model(graph, ir_version=IR_VERSION), {})
    assert {n.op_type for n in model.graph} == {"Constant", "QuantizeLinear", "DequantizeLinear"}
    (got,) = session_of(model).run(None, {"x": x})
    assert np.array_equal(got, x.astype(ml_dtypes.float8_e4m3fn).astype(np.float32), equal_nan=True)


def test_a_step_of_the_whole_graph_is_that_of_the_artefact():
    """One token behind 150: every kind of layer has entries, the window has gone round."""
    folder = exported("tiny-a")
    runner = open_runner(folder, slots=1)
    ids = np.random.default_rng(0).integers(0, runner.limits.vocab_size, (1, 151))
    before = StepInputs.checked(runner.limits, ids[:, :-1], slots=[0], positions=[0])
    runner.step(before, want_logits=False)
    step = StepInputs.checked(runner.limits, ids[:, -1:], slots=[0], positions=[150])
    made = standard_step(
        runner, step, standard_graph(read_graph(main_of(folder)), decode_shapes(folder))
    )
    want = runner.step(step)
    assert want.logits is not None
    close(made.pop("logits"), want.logits, "logits")
    assert made, "no state comes out"
    for name, array in made.items():
        close(array[:, :-1], runner.state[name.removesuffix("_out")][:, :-1], name)


def standard_step(runner: OnnxRunner, step: StepInputs, model: ir.Model) -> dict[str, np.ndarray]:
    """Logits and states of one step, which leaves the runner's own states alone."""
    artefact = runner.artefact
    info = artefact.manifest.graphs["main"]
    arrays = {i.name: artefact.weight(i) for i in info.inputs if i.kind == WEIGHT}
    arrays |= runner.state | asdict(step)
    session = session_of(model)
    feeds = {i.name: ort_value(arrays[i.name]) for i in session.get_inputs()}
    names = [o.name for o in info.outputs if o.kind == STATE or o.name == "logits"]
    return dict(
        zip(names, map(numpy_value, session.run_with_ort_values(names, feeds)), strict=True)
    )


def close(got: np.ndarray, want: np.ndarray, what: str) -> None:
    """NaN where the pool has never been written stays NaN."""
    pair = (torch.from_numpy(np.ascontiguousarray(a)) for a in (got, want))
    assert_close(*pair, relative=WHOLE_STEP, what=what)
