"""One op at a time: its cases, its reference, and its ONNX body in ONNX Runtime.

Buffers of results are filled with NaN (integers: a number that no op returns), so that what a body
does not write shows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from torch import Tensor

from ds4export.ops import ALL_OPS
from ds4export.ops._body import OPSET, Body, BodyOptions, T
from ds4export.ops._cases import Gen
from ds4export.ops._define import DOMAIN, Case, OpDef
from tests.kit.op_cases import MORE_CASES

FLOAT32, OFFICIAL = BodyOptions(official=False), BodyOptions(official=True)
UNWRITTEN = -(1 << 40)
IR_VERSION = 10
_ONNX_TYPES = {
    torch.float32: ir.DataType.FLOAT,
    torch.bfloat16: ir.DataType.BFLOAT16,
    torch.int64: ir.DataType.INT64,
    torch.int32: ir.DataType.INT32,
    torch.int8: ir.DataType.INT8,
    torch.bool: ir.DataType.BOOL,
}


def numerics_name(options: BodyOptions) -> str:
    return "official" if options.official else "float32"


def cases_of(name: str) -> tuple[Case, ...]:
    """The op's own cases and the additional ones of `op_cases`."""
    return (*ALL_OPS[name].cases, *MORE_CASES.get(name, ()))


def every_case(*names: str) -> list[Any]:
    """pytest parameters (op, case, options): all cases in both numerics, of all ops by default."""
    return [
        pytest.param(
            ALL_OPS[name], case, options, id=f"{name}-{case.name}-{numerics_name(options)}"
        )
        for name in (names or ALL_OPS)
        for case in cases_of(name)
        for options in (FLOAT32, OFFICIAL)
    ]


@dataclass(frozen=True)
class Call:
    """The arguments of one call of an op."""

    op: OpDef
    inputs: Mapping[str, Tensor]
    attributes: Mapping[str, Any]

    @property
    def arguments(self) -> tuple[Any, ...]:
        return (*self.inputs.values(), *self.attributes.values())


def make_call(op: OpDef, case: Case, *, official: bool) -> Call:
    """The inputs of a case; the same every time."""
    arguments = case.make(Gen(case.name, official=official))
    tensors, rest = arguments[: len(op.inputs)], arguments[len(op.inputs) :]
    names = op.attributes()
    return Call(op, dict(zip(op.inputs, tensors, strict=True)), dict(zip(names, rest, strict=True)))


def call_op(call: Call) -> dict[str, Tensor]:
    """The registered op on the call's tensors, wherever they live: its outputs by name."""
    made = getattr(torch.ops.ds4, call.op.name)(*call.arguments)
    outputs = made if isinstance(made, tuple) else (made,)
    return dict(zip(call.op.outputs, outputs, strict=True))


def run_body(
    call: Call,
    options: BodyOptions,
    like: Mapping[str, Tensor],
    *,
    in_place: bool = False,
) -> dict[str, Tensor]:
    """The op's ONNX body in ONNX Runtime; `like` gives the shapes and dtypes of the outputs.

    `in_place` binds each state output to the very buffer of its input.
    """
    inputs = {name: tensor.clone().contiguous() for name, tensor in call.inputs.items()}
    outputs = {name: unwritten_like(tensor) for name, tensor in like.items()}
    if in_place:
        assert call.op.aliases, f"{call.op.name} has no state"
        outputs |= {out: inputs[source] for out, source in call.op.aliases.items()}
    shapes = tuple((name, t.dtype, t.dim()) for name, t in inputs.items())
    session = _op_session(call.op.name, tuple(call.attributes.items()), options, shapes)
    run_bound(session, inputs, outputs)
    return outputs


def live_rows(call: Call, outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Outputs without what may hold anything: the scratch row of a state, where padding is written."""
    state = call.op.aliases or {}
    return {name: t[:, :-1] if name in state else t for name, t in outputs.items()}


def unwritten_like(tensor: Tensor) -> Tensor:
    fill = torch.nan if tensor.is_floating_point() else UNWRITTEN
    return torch.full(tensor.shape, fill, dtype=tensor.dtype)


def run_bound(
    session: ort.InferenceSession, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor]
) -> None:
    """Run a session on the memory of torch tensors; a result of another shape fails."""
    binding = session.io_binding()
    for bind, tensors in ((binding.bind_input, inputs), (binding.bind_output, outputs)):
        for name, t in tensors.items():
            assert t.is_contiguous(), f"{name} is not contiguous"
            bind(name, "cpu", 0, _ONNX_TYPES[t.dtype].value, tuple(t.shape), t.data_ptr())
    session.run_with_iobinding(binding)
    for made, (name, t) in zip(binding.get_outputs(), outputs.items(), strict=True):
        assert tuple(made.shape()) == tuple(t.shape), f"{name}: {made.shape()}"


@cache
def _op_session(
    name: str,
    attributes: tuple[tuple[str, Any], ...],
    options: BodyOptions,
    inputs: tuple[tuple[str, torch.dtype, int], ...],
) -> ort.InferenceSession:
    """A model of one node and its function, with every dimension symbolic."""
    op = ALL_OPS[name]
    values = [_symbolic(name, dtype, rank) for name, dtype, rank in inputs]
    attrs = [ir.convenience.convert_attribute(k, v) for k, v in attributes]
    node = ir.Node(DOMAIN, name, values, attrs, num_outputs=len(op.outputs))
    for value, (out, kind) in zip(node.outputs, op.outputs.items(), strict=True):
        value.name, value.type = out, ir.TensorType(op._dtype(kind, out, options))
    graph = ir.Graph(
        values, node.outputs, nodes=[node], name=name, opset_imports={"": OPSET, DOMAIN: op.version}
    )
    function = op.function(dict(attributes), options)
    return _session(ir.Model(graph, ir_version=IR_VERSION, functions=[function]))


def forget_sessions() -> None:
    """For tests that change how a body is built."""
    _op_session.cache_clear()


def _symbolic(name: str, dtype: torch.dtype, rank: int) -> ir.Value:
    shape = ir.Shape([f"{name}{axis}" for axis in range(rank)])
    return ir.Value(name=name, type=ir.TensorType(_ONNX_TYPES[dtype]), shape=shape)


def _session(model: ir.Model) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    data = ir.to_proto(model).SerializeToString()
    return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def run_nodes(
    build: Any, inputs: Mapping[str, Tensor], like: Tensor, options: BodyOptions = OFFICIAL
) -> Tensor:
    """Run a piece of a body: `build(**values)` appends nodes and returns the result.

    Example:
        >>> x = torch.tensor([1.0, -2.0])
        >>> run_nodes(lambda x: x.unary("Abs"), {"x": x}, x)
        tensor([1., 2.])
    """
    body = Body(options)
    values = [_symbolic(name, t.dtype, t.dim()) for name, t in inputs.items()]
    taken = {
        name: T(body, value, _ONNX_TYPES[t.dtype])
        for value, (name, t) in zip(values, inputs.items(), strict=True)
    }
    made: T = build(**taken)
    made.value.name, made.value.type = "made", ir.TensorType(made.dtype)
    graph = ir.Graph(
        values, [made.value], nodes=body.nodes, name="piece", opset_imports={"": OPSET}
    )
    out = unwritten_like(like)
    contiguous = {name: t.contiguous() for name, t in inputs.items()}
    run_bound(_session(ir.Model(graph, ir_version=IR_VERSION)), contiguous, {"made": out})
    return out
