"""Shape and content rules of the standard operators that occur in bodies, one function each.

A rule gets the node and what is known of its inputs and returns what is known of its outputs. It never guesses: a
dimension it cannot express gets a name of its own, and a rank it cannot tell is NOTHING.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

import onnx_ir as ir

from ds4export.passes._size import ONE, SIGNED, Size, divide, operation, size

Shape = tuple[Size, ...]
MAX_CONTENT = 64  # elements; the sizes of a body are shorter, its tables longer
ZERO = size(0)


@dataclass(frozen=True)
class Known:
    """Shape of a value, None where the rank is unknown; its elements where they are INT64 made of sizes."""

    shape: Shape | None
    content: tuple[Size, ...] | None = None


NOTHING = Known(None)
Rule = Callable[[ir.Node, list[Known]], list[Known]]


def _axis(node: ir.Node, name: str, default: int, rank: int) -> int:
    value = node.attributes.get_int(name, default)
    assert value is not None, f"{node.op_type} has no {name}"
    return value + rank if value < 0 else value


def _numbers(known: Known) -> list[int] | None:
    """The content, where every element is a number."""
    if known.content is None:
        return None
    numbers = [s.number for s in known.content]
    return None if any(n is None for n in numbers) else [n for n in numbers if n is not None]


def _fresh(node: ir.Node, output: int, axis: int) -> Size:
    return size(f"{node.outputs[output].name}.{axis}")


def _elements(node: ir.Node, inputs: list[Known], at: int) -> tuple[Size, ...] | None:
    """The content of an input that must be integers; an unknown element gets the name of its value."""
    known, value = inputs[at], node.inputs[at]
    if known.content is not None or known.shape is None or len(known.shape) > 1 or value is None:
        return known.content
    count = known.shape[0].number if known.shape else 1
    if count is None or count > MAX_CONTENT:
        return None
    return tuple(size(f"{SIGNED}{value.name}[{i}]") for i in range(count))


def _vector(content: tuple[Size, ...]) -> Known:
    return Known((size(len(content)),), content if len(content) <= MAX_CONTENT else None)


def _joined(shapes: list[Shape | None], node: ir.Node) -> Shape | None:
    """The common shape of operands that broadcast."""
    known = [s for s in shapes if s is not None]
    if len(known) < len(shapes):
        return None
    rank = max(len(s) for s in known)
    columns = [{s[i - rank] for s in known if len(s) >= rank - i} - {ONE} for i in range(rank)]
    return tuple(_widest(column) or _fresh(node, 0, i) for i, column in enumerate(columns))


def _widest(dims: set[Size]) -> Size | None:
    """What dims that broadcast have in common: 1 if there are none, the only one, or the only number."""
    numbers = [d for d in dims if d.number is not None]
    if not dims:
        return ONE
    if len(dims) == 1:
        return next(iter(dims))
    return numbers[0] if len(numbers) == 1 else None


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
    return [_vector(shape[start:end])]


def _same(_: ir.Node, inputs: list[Known]) -> list[Known]:
    return [Known(inputs[0].shape)]


def _identity(_: ir.Node, inputs: list[Known]) -> list[Known]:
    return [inputs[0]]


def _cast(node: ir.Node, inputs: list[Known]) -> list[Known]:
    integer = node.attributes["to"].as_int() == ir.DataType.INT64
    return [inputs[0] if integer else Known(inputs[0].shape)]


def _broadcast(node: ir.Node, inputs: list[Known]) -> list[Known]:
    return [Known(_joined([k.shape for k in inputs], node))]


def _arithmetic(node: ir.Node, inputs: list[Known]) -> list[Known]:
    shape = _joined([k.shape for k in inputs], node)
    if shape is None or len(shape) > 1 or all(k.content is None for k in inputs):
        return [Known(shape)]
    a, b = (_elements(node, inputs, i) for i in range(2))
    if a is None or b is None:
        return [Known(shape)]
    length = max(len(a), len(b))
    pairs = zip(a * (length // len(a)) if a else a, b * (length // len(b)) if b else b, strict=True)
    return [Known(shape, tuple(operation(node.op_type, m, n) for m, n in pairs))]


def _concat(node: ir.Node, inputs: list[Known]) -> list[Known]:
    shapes = [k.shape for k in inputs]
    if any(s is None for s in shapes):
        return [NOTHING]
    known = [s for s in shapes if s is not None]
    axis = _axis(node, "axis", 0, len(known[0]))
    total = known[0][axis]
    for s in known[1:]:
        total = total + s[axis]
    shape = (*known[0][:axis], total, *known[0][axis + 1 :])
    if len(shape) > 1 or all(k.content is None for k in inputs):
        return [Known(shape)]
    parts = [_elements(node, inputs, i) for i in range(len(inputs))]
    if any(p is None for p in parts):
        return [Known(shape)]
    return [Known(shape, tuple(s for p in parts if p is not None for s in p))]


def _slice(node: ir.Node, inputs: list[Known]) -> list[Known]:
    data, starts, ends, axes = inputs
    at = _numbers(axes)
    if data.shape is None or at is None:
        return [NOTHING]
    shape, content = list(data.shape), data.content
    for i, axis in enumerate(at):
        axis %= len(shape)
        start, end = (k.content[i] if k.content else None for k in (starts, ends))
        content = _cut_content(content, start, end)
        shape[axis] = _cut(shape[axis], start, end) or _fresh(node, 0, axis)
    return [Known(tuple(shape), content if len(shape) == 1 else None)]


def _cut(dim: Size, start: Size | None, end: Size | None) -> Size | None:
    """The length that a slice leaves of a dimension: known for numbers, and for a tail that is part of it."""
    if start is None or end is None:
        return None
    if dim.number is not None and start.number is not None and end.number is not None:
        return size(len(range(dim.number)[start.number : end.number]))
    return dim - start if end == dim and (dim - start).never_negative else None


def _cut_content(
    content: tuple[Size, ...] | None, start: Size | None, end: Size | None
) -> tuple[Size, ...] | None:
    if (
        content is None
        or start is None
        or end is None
        or start.number is None
        or end.number is None
    ):
        return None
    return content[start.number : end.number]


def _split(node: ir.Node, inputs: list[Known]) -> list[Known]:
    shape, sizes = inputs[0].shape, inputs[1].content
    if shape is None or sizes is None:
        return [NOTHING] * len(node.outputs)
    axis = _axis(node, "axis", 0, len(shape))
    return [Known((*shape[:axis], n, *shape[axis + 1 :])) for n in sizes]


def _gather(node: ir.Node, inputs: list[Known]) -> list[Known]:
    data, indices = inputs
    if data.shape is None or indices.shape is None:
        return [NOTHING]
    axis = _axis(node, "axis", 0, len(data.shape))
    shape = (*data.shape[:axis], *indices.shape, *data.shape[axis + 1 :])
    at = _numbers(indices)
    if data.content is None or at is None or len(shape) > 1:
        return [Known(shape)]
    return [Known(shape, tuple(data.content[i] for i in at))]


def _gather_nd(node: ir.Node, inputs: list[Known]) -> list[Known]:
    data, indices = inputs
    if data.shape is None or indices.shape is None or indices.shape[-1].number is None:
        return [NOTHING]
    batch = node.attributes.get_int("batch_dims", 0)
    assert batch is not None, "GatherND without batch_dims"
    return [Known((*indices.shape[:-1], *data.shape[batch + indices.shape[-1].number :]))]


def _gather_elements(_: ir.Node, inputs: list[Known]) -> list[Known]:
    return [Known(inputs[1].shape)]


def _reshape(node: ir.Node, inputs: list[Known]) -> list[Known]:
    data, target = inputs[0], _elements(node, inputs, 1)
    if target is None:
        return [NOTHING]
    dims: list[Size | None] = []
    for i, wanted in enumerate(target):
        if wanted == ZERO:
            dims.append(data.shape[i] if data.shape is not None else _fresh(node, 0, i))
        else:
            dims.append(None if wanted.number == -1 else wanted)
    others = prod((d for d in dims if d is not None), start=ONE)
    whole = prod(data.shape, start=ONE) if data.shape is not None else None
    rest = divide(whole, others) if whole is not None else None
    shape = tuple(d if d is not None else rest or _fresh(node, 0, i) for i, d in enumerate(dims))
    return [Known(shape, data.content if len(shape) < 2 else None)]


def flattened(shape: Shape, axis: int) -> Shape:
    """[product of the dimensions before the axis, product of the others]."""
    return prod(shape[:axis], start=ONE), prod(shape[axis:], start=ONE)


def _flatten(node: ir.Node, inputs: list[Known]) -> list[Known]:
    shape = inputs[0].shape
    return [
        NOTHING if shape is None else Known(flattened(shape, _axis(node, "axis", 1, len(shape))))
    ]


def _unsqueeze(_: ir.Node, inputs: list[Known]) -> list[Known]:
    data, at = inputs[0], _numbers(inputs[1])
    if data.shape is None or at is None:
        return [NOTHING]
    rank = len(data.shape) + len(at)
    places, dims = {a % rank for a in at}, iter(data.shape)
    shape = tuple(ONE if i in places else next(dims) for i in range(rank))
    return [Known(shape, data.content if rank < 2 else None)]


def _squeeze(_: ir.Node, inputs: list[Known]) -> list[Known]:
    data, at = inputs[0], _numbers(inputs[1])
    if data.shape is None or at is None:
        return [NOTHING]
    places = {a % len(data.shape) for a in at}
    shape = tuple(d for i, d in enumerate(data.shape) if i not in places)
    return [Known(shape, data.content if len(shape) < 2 else None)]


def _expand(node: ir.Node, inputs: list[Known]) -> list[Known]:
    return [Known(_joined([inputs[0].shape, _elements(node, inputs, 1)], node))]


def _transpose(node: ir.Node, inputs: list[Known]) -> list[Known]:
    shape = inputs[0].shape
    return [
        NOTHING
        if shape is None
        else Known(tuple(shape[i] for i in node.attributes["perm"].as_ints()))
    ]


def _reduce(node: ir.Node, inputs: list[Known]) -> list[Known]:
    shape, keep = inputs[0].shape, node.attributes.get_int("keepdims", 1)
    if shape is None:
        return [NOTHING]
    at = _numbers(inputs[1]) if len(inputs) > 1 else list(range(len(shape)))
    if at is None:
        return [NOTHING]
    places = {a % len(shape) for a in at}
    dims = (None if i in places else d for i, d in enumerate(shape))
    return [Known(tuple(d or ONE for d in dims if d or keep))]


def _matmul(node: ir.Node, inputs: list[Known]) -> list[Known]:
    a, b = (k.shape for k in inputs)
    if a is None or b is None or len(a) < 2 or len(b) < 2:
        return [NOTHING]
    lead = _joined([a[:-2], b[:-2]], node)
    return [NOTHING if lead is None else Known((*lead, a[-2], b[-1]))]


def _gemm(node: ir.Node, inputs: list[Known]) -> list[Known]:
    a, b = (k.shape for k in inputs[:2])
    if a is None or b is None:
        return [NOTHING]
    rows, columns = (node.attributes.get_int(name, 0) for name in ("transA", "transB"))
    return [Known((a[1 if rows else 0], b[0 if columns else 1]))]


def _range(node: ir.Node, inputs: list[Known]) -> list[Known]:
    start, limit, step = (_elements(node, inputs, i) for i in range(3))
    if start is None or limit is None or step is None or step[0] != ONE:
        return [Known((_fresh(node, 0, 0),))]
    length = limit[0] - start[0]
    number, first = length.number, start[0].number
    if number is not None and first is not None:
        return [_vector(tuple(size(first + i) for i in range(max(number, 0))))]
    return [Known((length if length.never_negative else _fresh(node, 0, 0),))]


def _pad(node: ir.Node, inputs: list[Known]) -> list[Known]:
    shape, pads = inputs[0].shape, inputs[1].content
    if shape is None:
        return [NOTHING]
    at = _numbers(inputs[3]) if len(inputs) > 3 else list(range(len(shape)))
    if pads is None or at is None:
        return [Known(tuple(_fresh(node, 0, i) for i in range(len(shape))))]
    dims = list(shape)
    for i, axis in enumerate(at):
        dims[axis] = dims[axis] + pads[i] + pads[i + len(at)]
    return [Known(tuple(dims))]


def _topk(node: ir.Node, inputs: list[Known]) -> list[Known]:
    shape, k = inputs[0].shape, inputs[1].content
    if shape is None:
        return [NOTHING, NOTHING]
    axis = _axis(node, "axis", -1, len(shape))
    found = Known((*shape[:axis], k[0] if k else _fresh(node, 0, axis), *shape[axis + 1 :]))
    return [found, found]


def _non_zero(node: ir.Node, inputs: list[Known]) -> list[Known]:
    shape = inputs[0].shape
    return [NOTHING if shape is None else Known((size(len(shape)), _fresh(node, 0, 1)))]


def _filled(node: ir.Node, inputs: list[Known]) -> list[Known]:
    return [Known(_elements(node, inputs, 0))]


RULES: dict[str, Rule] = {
    "Constant": _constant,
    "Shape": _shape,
    "Cast": _cast,
    "Identity": _identity,
    "Concat": _concat,
    "Slice": _slice,
    "Split": _split,
    "Gather": _gather,
    "GatherND": _gather_nd,
    "GatherElements": _gather_elements,
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze,
    "Expand": _expand,
    "Transpose": _transpose,
    "MatMul": _matmul,
    "Gemm": _gemm,
    "Range": _range,
    "Pad": _pad,
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
