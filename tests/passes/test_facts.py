"""What the passes believe of a body is true: shapes and sizes against a run of every op's cases."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from torch import Tensor

from ds4export.graph.verify import IR_VERSION
from ds4export.ops import ALL_OPS
from ds4export.ops._body import BodyOptions
from ds4export.ops._cases import Gen
from ds4export.ops._define import BOUNDARY, INTS, Case, OpDef
from ds4export.passes._facts import Known
from ds4export.passes._known import interpret
from ds4export.passes._size import Size, size
from tests.passes.build import LEVELS

BF16 = 16  # ONNX's number for the type
CASES = [(op, case) for op in ALL_OPS.values() for case in (op.cases[0], op.cases[-1])]


def value_of(s: Size) -> int | None:
    """The value where every name is a dimension of an input: those are called after their size."""
    if not all(name.isidentifier() for name in s.names):
        return None
    return sum(n * math.prod(int(name.removeprefix("n")) for name in names) for names, n in s.terms)


def signature_of(op: OpDef, tensors: dict[str, Tensor]) -> tuple[tuple[Size, ...], ...]:
    """Batch, tokens, slots and rows by name, widths as numbers."""
    named = {name for name, kind in op.inputs.items() if kind in (BOUNDARY, INTS)}
    return tuple(
        tuple(size(f"n{d}" if name in named and axis < 2 else d) for axis, d in enumerate(t.shape))
        for name, t in tensors.items()
    )


def run_all(body: ir.Function, tensors: dict[str, Tensor]) -> dict[str, ort.OrtValue]:
    """Every value at the top of the body."""
    body.graph.outputs.clear()
    body.graph.outputs.extend(v for node in body for v in node.outputs)
    for value, tensor in zip(body.inputs, tensors.values(), strict=True):
        kinds = {torch.bfloat16: "BFLOAT16", torch.float32: "FLOAT", torch.int8: "INT8"}
        value.type = ir.TensorType(ir.DataType[kinds.get(tensor.dtype, "INT64")])
        value.shape = ir.Shape(tensor.shape)
    proto = ir.to_proto(ir.Model(body.graph, ir_version=IR_VERSION)).SerializeToString()
    options = ort.SessionOptions()
    options.graph_optimization_level, options.log_severity_level = LEVELS[0], 4
    session = ort.InferenceSession(proto, options)
    binding, names = session.io_binding(), [o.name for o in session.get_outputs()]
    for name, tensor in tensors.items():
        binding.bind_ortvalue_input(name, ort_value(tensor))
    for name in names:
        binding.bind_output(name)
    session.run_with_iobinding(binding)
    return dict(zip(names, binding.get_outputs(), strict=True))


def ort_value(tensor: Tensor) -> ort.OrtValue:
    if tensor.dtype == torch.bfloat16:
        words = tensor.contiguous().view(torch.int16).numpy().view(np.uint16)
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(words, BF16)
    return ort.OrtValue.ortvalue_from_numpy(tensor.contiguous().numpy())


def contradictions(value: ir.Value, known: Known, actual: ort.OrtValue) -> list[str]:
    found = []
    if known.shape is not None:
        believed = [value_of(s) for s in known.shape]
        shape = actual.shape()
        if len(shape) != len(believed) or any(
            b not in (None, a) for a, b in zip(shape, believed, strict=True)
        ):
            found.append(f"{value.name} is {shape}, not {[str(s) for s in known.shape]}")
    if known.content is not None:
        numbers = actual.numpy().reshape(-1).tolist()
        if any(value_of(s) not in (None, n) for s, n in zip(known.content, numbers, strict=True)):
            found.append(f"{value.name} holds {numbers}, not {[str(s) for s in known.content]}")
    return found


@pytest.mark.parametrize(
    ("op", "case"), CASES, ids=[f"{op.name}-{case.name}" for op, case in CASES]
)
def test_believed_shapes_and_sizes_are_the_actual_ones(op: OpDef, case: Case) -> None:
    arguments: tuple[Any, ...] = case.make(Gen(case.name, official=True))
    tensors = dict(zip(op.inputs, arguments, strict=False))
    attributes = dict(zip(op.attributes(), arguments[len(op.inputs) :], strict=True))
    body = op.function(attributes, BodyOptions(official=True))
    table = interpret(body, signature_of(op, tensors))
    actual = run_all(body, tensors)
    values = {v.name: v for node in body for v in node.outputs}
    wrong = [
        c
        for name, got in actual.items()
        for c in contradictions(values[name], table[values[name]], got)
    ]
    assert not wrong
    unknown = [v.name for v in values.values() if table[v].shape is None]
    assert len(unknown) <= 1, f"of unknown rank: {unknown}"
