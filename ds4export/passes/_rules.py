"""Shape and content rules of the standard operators that occur in bodies, one function each.

A rule gets the node and what is known of its inputs and returns what is known of its outputs. It never guesses: a
dimension it cannot express gets a name of its own, and a rank it cannot tell is NOTHING.
"""

from __future__ import annotations

import onnx_ir as ir

from ds4export.passes._facts import (
    MAX_CONTENT,
    NOTHING,
    Known,
    axis_of,
    elements,
    fresh,
    joined,
    numbers_of,
    vector,
)
from ds4export.passes._moving_rules import MOVING, Rule
from ds4export.passes._size import ONE, operation, size


def _constant(node: ir.Node, _: list[Known]) -> list[Known]:
    tensor = node.attributes["value"].as_tensor()
    shape = tuple(size(d) for d in tensor.numpy().shape)
    if tensor.dtype != ir.DataType.INT64 or tensor.size > MAX_CONTENT or len(shape) > 1:
        return [Known(shape)]
    return [Known(shape, tuple(size(int(n)) for n in tensor.numpy().reshape(-1)))]


def _shape(node: ir.Node, inputs: list[Known]) -> list[Known]:
    shape = inputs[0].shape
    if shape is None:
        return [NOTHING]
    start, end = node.attributes.get_int("start", 0), node.attributes.get_int("end", len(shape))
    return [vector(shape[start:end])]


def _same(_: ir.Node, inputs: list[Known]) -> list[Known]:
    return [Known(inputs[0].shape)]


def _identity(_: ir.Node, inputs: list[Known]) -> list[Known]:
    return [inputs[0]]


def _cast(node: ir.Node, inputs: list[Known]) -> list[Known]:
    integer = node.attributes["to"].as_int() == ir.DataType.INT64
    return [inputs[0] if integer else Known(inputs[0].shape)]


def _broadcast(node: ir.Node, inputs: list[Known]) -> list[Known]:
    return [Known(joined([k.shape for k in inputs], node))]


def _arithmetic(node: ir.Node, inputs: list[Known]) -> list[Known]:
    shape = joined([k.shape for k in inputs], node)
    if shape is None or len(shape) > 1 or all(k.content is None for k in inputs):
        return [Known(shape)]
    a, b = (elements(node, inputs, i) for i in range(2))
    if a is None or b is None:
        return [Known(shape)]
    length = max(len(a), len(b))
    pairs = zip(a * (length // len(a)) if a else a, b * (length // len(b)) if b else b, strict=True)
    return [Known(shape, tuple(operation(node.op_type, m, n) for m, n in pairs))]


def _reduce(node: ir.Node, inputs: list[Known]) -> list[Known]:
    shape, keep = inputs[0].shape, node.attributes.get_int("keepdims", 1)
    if shape is None:
        return [NOTHING]
    at = numbers_of(inputs[1]) if len(inputs) > 1 else list(range(len(shape)))
    if at is None:
        return [NOTHING]
    places = {a % len(shape) for a in at}
    dims = (None if i in places else d for i, d in enumerate(shape))
    return [Known(tuple(d or ONE for d in dims if d or keep))]


def _matmul(node: ir.Node, inputs: list[Known]) -> list[Known]:
    a, b = (k.shape for k in inputs)
    if a is None or b is None or len(a) < 2 or len(b) < 2:
        return [NOTHING]
    lead = joined([a[:-2], b[:-2]], node)
    return [NOTHING if lead is None else Known((*lead, a[-2], b[-1]))]


def _gemm(node: ir.Node, inputs: list[Known]) -> list[Known]:
    a, b = (k.shape for k in inputs[:2])
    if a is None or b is None:
        return [NOTHING]
    rows, columns = (node.attributes.get_int(name, 0) for name in ("transA", "transB"))
    return [Known((a[1 if rows else 0], b[0 if columns else 1]))]


def _range(node: ir.Node, inputs: list[Known]) -> list[Known]:
    start, limit, step = (elements(node, inputs, i) for i in range(3))
    if start is None or limit is None or step is None or step[0] != ONE:
        return [Known((fresh(node, 0, 0),))]
    length = limit[0] - start[0]
    number, first = length.number, start[0].number
    if number is not None and first is not None:
        return [vector(tuple(size(first + i) for i in range(max(number, 0))))]
    return [Known((length if length.never_negative else fresh(node, 0, 0),))]


def _topk(node: ir.Node, inputs: list[Known]) -> list[Known]:
    shape, k = inputs[0].shape, inputs[1].content
    if shape is None:
        return [NOTHING, NOTHING]
    axis = axis_of(node, "axis", -1, len(shape))
    found = Known((*shape[:axis], k[0] if k else fresh(node, 0, axis), *shape[axis + 1 :]))
    return [found, found]


def _non_zero(node: ir.Node, inputs: list[Known]) -> list[Known]:
    shape = inputs[0].shape
    return [NOTHING if shape is None else Known((size(len(shape)), fresh(node, 0, 1)))]


def _filled(node: ir.Node, inputs: list[Known]) -> list[Known]:
    return [Known(elements(node, inputs, 0))]


RULES: dict[str, Rule] = {
    **MOVING,
    "Constant": _constant,
    "Shape": _shape,
    "Cast": _cast,
    "Identity": _identity,
    "MatMul": _matmul,
    "Gemm": _gemm,
    "Range": _range,
    "TopK": _topk,
    "NonZero": _non_zero,
    "ConstantOfShape": _filled,
    **dict.fromkeys(("Add", "Sub", "Mul", "Div", "Mod", "Min", "Max"), _arithmetic),
    **dict.fromkeys(("ReduceSum", "ReduceMean", "ReduceMax"), _reduce),
    **dict.fromkeys(
        ("Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Equal", "And", "Where"), _broadcast
    ),
    **dict.fromkeys(
        (
            "Abs",
            "Neg",
            "Exp",
            "Log",
            "Sqrt",
            "Reciprocal",
            "Clip",
            "Round",
            "Sin",
            "Cos",
            "Sigmoid",
            "Relu",
        ),
        _same,
    ),
    **dict.fromkeys(("Softmax", "ScatterND"), _same),
}
