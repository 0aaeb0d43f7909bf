"""Op bodies: one ONNX function per ds4 op of a graph, so that plain ONNX Runtime can run it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import onnx_ir as ir

from ds4export.errors import ExportError
from ds4export.ops import ALL_OPS
from ds4export.ops._body import BodyOptions
from ds4export.ops._define import DOMAIN


def op_nodes(model: ir.Model) -> Iterator[ir.Node]:
    """Every ds4 node of the graph and of its layer functions."""
    for graph in (model.graph, *model.functions.values()):
        yield from (node for node in graph if node.domain == DOMAIN)


def attach_bodies(model: ir.Model, options: BodyOptions) -> ir.Model:
    """Add the body of each op that the model uses.

    Raises:
        ExportError: two nodes of one op differ in attributes; a name has one body (design 3).
    """
    used: dict[str, dict[str, Any]] = {}
    for node in op_nodes(model):
        attributes = {a.name: a.value for a in node.attributes.values()}
        known = used.setdefault(node.op_type, attributes)
        if known != attributes:
            raise ExportError(
                f"two `{node.op_type}` nodes differ in attributes",
                where=node.name,
                found=attributes,
                expected=known,
                hint="a variant is an op of its own",
            )
    for name, attributes in used.items():
        function = ALL_OPS[name].function(attributes, options)
        model.functions[function.identifier()] = function
    return model
