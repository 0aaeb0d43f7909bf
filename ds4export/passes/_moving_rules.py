"""Shape and content rules of the operators that only move elements."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import onnx_ir as ir

from ds4export.passes._facts import (
    NOTHING,
    Known,
    Shape,
    axis_of,
    elements,
    fresh,
    joined,
    numbers_of,
)
from ds4export.passes._size import ONE, Size, divide, size

ZERO = size(0)
Rule = Callable[[ir.Node, list[Known]], list[Known]]


def _concat(node: ir.Node, inputs: list[Known]) -> list[Known]:
    shapes = [k.shape for k in inputs]
    if any(s is None for s in shapes):
        return [NOTHING]
    known = [s for s in shapes if s is not None]
    axis = axis_of(node, "axis", 0, len(known[0]))
    total = known[0][axis]
    for s in known[1:]:
        total = total + s[axis]
    shape = (*known[0][:axis], total, *known[0][axis + 1 :])
    if len(shape) > 1 or all(k.content is None for k in inputs):
        return [Known(shape)]
    parts = [elements(node, inputs, i) for i in range(len(inputs))]
    if any(p is None for p in parts):
        return [Known(shape)]
    return [Known(shape, tuple(s for p in parts if p is not None for s in p))]


def _slice(node: ir.Node, inputs: list[Known]) -> list[Known]:
    data, starts, ends, axes = inputs[:4]
    at = numbers_of(axes)
    if data.shape is None or at is None or len(inputs) > 4:
        return [NOTHING]
    shape, content = list(data.shape), data.content
    for i, axis in enumerate(at):
        axis %= len(shape)
        start, end = (k.content[i] if k.content else None for k in (starts, ends))
        content = _cut_content(content, start, end)
        shape[axis] = _cut(shape[axis], start, end) or fresh(node, 0, axis)
    return [Known(tuple(shape), content if len(shape) == 1 else None)]


def _cut(dim: Size, start: Size | None, end: Size | None) -> Size | None:
    """The length that a slice leaves of a dimension: known for numbers, and for a tail that is part of it."""
    if start is None or end is None:
        return None
    if dim.number is not None and start.number is not None and end.number is not None:
        return size(len(range(dim.number)[start.number : end.number]))
    part = start.never_negative and (dim - start).never_negative
    return dim - start if end == dim and part else None


def _cut_content(
    content: tuple[Size, ...] | None, start: Size | None, end: Size | None
) -> tuple[Size, ...] | None:
    bounds = [b.number if b is not None else None for b in (start, end)]
    if content is None or None in bounds:
        return None
    return content[slice(*bounds)]


def _split(node: ir.Node, inputs: list[Known]) -> list[Known]:
    shape, sizes = inputs[0].shape, inputs[1].content
    if shape is None or sizes is None:
        return [NOTHING] * len(node.outputs)
    axis = axis_of(node, "axis", 0, len(shape))
    return [Known((*shape[:axis], n, *shape[axis + 1 :])) for n in sizes]


def _gather(node: ir.Node, inputs: list[Known]) -> list[Known]:
    data, indices = inputs
    if data.shape is None or indices.shape is None:
        return [NOTHING]
    axis = axis_of(node, "axis", 0, len(data.shape))
    shape = (*data.shape[:axis], *indices.shape, *data.shape[axis + 1 :])
    at = numbers_of(indices)
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
    data, target = inputs[0], elements(node, inputs, 1)
    if target is None:
        return [NOTHING]
    dims: list[Size | None] = []
    for i, wanted in enumerate(target):
        if wanted == ZERO:
            dims.append(data.shape[i] if data.shape is not None else fresh(node, 0, i))
        else:
            dims.append(None if wanted.number == -1 else wanted)
    others = prod((d for d in dims if d is not None), start=ONE)
    whole = prod(data.shape, start=ONE) if data.shape is not None else None
    rest = divide(whole, others) if whole is not None else None
    shape = tuple(d if d is not None else rest or fresh(node, 0, i) for i, d in enumerate(dims))
    return [Known(shape, data.content if len(shape) < 2 else None)]


def flattened(shape: Shape, axis: int) -> Shape:
    """[product of the dimensions before the axis, product of the others]."""
    return prod(shape[:axis], start=ONE), prod(shape[axis:], start=ONE)


def _flatten(node: ir.Node, inputs: list[Known]) -> list[Known]:
    shape = inputs[0].shape
    if shape is None:
        return [NOTHING]
    return [Known(flattened(shape, axis_of(node, "axis", 1, len(shape))))]


def _unsqueeze(_: ir.Node, inputs: list[Known]) -> list[Known]:
    data, at = inputs[0], numbers_of(inputs[1])
    if data.shape is None or at is None:
        return [NOTHING]
    rank = len(data.shape) + len(at)
    places, dims = {a % rank for a in at}, iter(data.shape)
    shape = tuple(ONE if i in places else next(dims) for i in range(rank))
    return [Known(shape, data.content if rank < 2 else None)]


def _squeeze(_: ir.Node, inputs: list[Known]) -> list[Known]:
    data, at = inputs[0], numbers_of(inputs[1])
    if data.shape is None or at is None:
        return [NOTHING]
    places = {a % len(data.shape) for a in at}
    shape = tuple(d for i, d in enumerate(data.shape) if i not in places)
    return [Known(shape, data.content if len(shape) < 2 else None)]


def _expand(node: ir.Node, inputs: list[Known]) -> list[Known]:
    return [Known(joined([inputs[0].shape, elements(node, inputs, 1)], node))]


def _transpose(node: ir.Node, inputs: list[Known]) -> list[Known]:
    shape = inputs[0].shape
    if shape is None:
        return [NOTHING]
    return [Known(tuple(shape[i] for i in node.attributes["perm"].as_ints()))]


def _pad(node: ir.Node, inputs: list[Known]) -> list[Known]:
    shape, pads = inputs[0].shape, inputs[1].content
    if shape is None:
        return [NOTHING]
    at = numbers_of(inputs[3]) if len(inputs) > 3 else list(range(len(shape)))
    if pads is None or at is None:
        return [Known(tuple(fresh(node, 0, i) for i in range(len(shape))))]
    dims = list(shape)
    for i, axis in enumerate(at):
        dims[axis] = dims[axis] + pads[i] + pads[i + len(at)]
    return [Known(tuple(dims))]


MOVING: dict[str, Rule] = {
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
    "Pad": _pad,
}
