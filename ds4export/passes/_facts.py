"""What one value of a body is known to be, and the questions that the rules of operators ask about it."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from ds4export.passes._size import ONE, SIGNED, Size, size

Shape = tuple[Size, ...]
MAX_CONTENT = 64  # elements; the sizes of a body are shorter, its tables longer


@dataclass(frozen=True)
class Known:
    """Shape of a value, None where the rank is unknown; its elements where they are INT64 made of sizes."""

    shape: Shape | None
    content: tuple[Size, ...] | None = None


NOTHING = Known(None)


def axis_of(node: ir.Node, name: str, default: int, rank: int) -> int:
    value = node.attributes.get_int(name, default)
    assert value is not None, f"{node.op_type} has no {name}"
    return value + rank if value < 0 else value


def numbers_of(known: Known) -> list[int] | None:
    """The content, where every element is a number."""
    if known.content is None:
        return None
    numbers = [s.number for s in known.content]
    return None if any(n is None for n in numbers) else [n for n in numbers if n is not None]


def fresh(node: ir.Node, output: int, axis: int) -> Size:
    return size(f"{node.outputs[output].name}.{axis}")


def elements(node: ir.Node, inputs: list[Known], at: int) -> tuple[Size, ...] | None:
    """The content of an input that must be integers; an unknown element gets the name of its value."""
    known, value = inputs[at], node.inputs[at]
    if known.content is not None or known.shape is None or len(known.shape) > 1 or value is None:
        return known.content
    count = known.shape[0].number if known.shape else 1
    if count is None or count > MAX_CONTENT:
        return None
    return tuple(size(f"{SIGNED}{value.name}[{i}]") for i in range(count))


def vector(content: tuple[Size, ...]) -> Known:
    return Known((size(len(content)),), content if len(content) <= MAX_CONTENT else None)


def joined(shapes: list[Shape | None], node: ir.Node) -> Shape | None:
    """The common shape of operands that broadcast."""
    known = [s for s in shapes if s is not None]
    if len(known) < len(shapes):
        return None
    rank = max(len(s) for s in known)
    columns = [{s[i - rank] for s in known if len(s) >= rank - i} - {ONE} for i in range(rank)]
    return tuple(_widest(column) or fresh(node, 0, i) for i, column in enumerate(columns))


def _widest(dims: set[Size]) -> Size | None:
    """What dims that broadcast have in common: 1 if there are none, the only one, or the only number."""
    numbers = [d for d in dims if d.number is not None]
    if not dims:
        return ONE
    if len(dims) == 1:
        return next(iter(dims))
    return numbers[0] if len(numbers) == 1 else None
