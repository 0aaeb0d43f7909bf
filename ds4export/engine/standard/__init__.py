"""An artefact's graph in standard ONNX operators alone: the bodies kept and inlined, no ds4 op left, no plugin needed.

    as exported        loops and dimensions by name stay: TensorRT's parser takes it, its builder fails on the loops
    at fixed shapes    the graph of one step, loops written out: the builder takes it too

A second opinion on the lowering: TensorRT checks types and shapes of every body. Not for use: every weight would be
dequantised whole, every row of a cache be read. Refuses a graph in which an op has no body.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir
from onnx_ir.passes.common import CommonSubexpressionEliminationPass, InlinePass

from ds4export.engine.standard.builder_forms import (
    quantise_casts,
    read_all_entries,
    sum_by_products,
    widen_constants,
)
from ds4export.engine.standard.fixed_shapes import fix_shapes
from ds4export.engine.standard.moe_by_pairs import go_by_pairs
from ds4export.errors import ExportError
from ds4export.passes._bodies import bodies

FORMS = {
    "attention_hca": read_all_entries,
    "hc_pre": sum_by_products,
    "indexer_topk": read_all_entries,
    "moe": go_by_pairs,
}

__all__ = ["FORMS", "standard_graph"]


def standard_graph(model: ir.Model, shapes: Mapping[str, Sequence[int]] | None = None) -> ir.Model:
    """The graph with all functions inlined, in forms that TensorRT for RTX takes; consumes the model.

    With `shapes`, by input, it is fixed to them and loops are written out; inputs of fixed shape need not be named.
    onnx.inliner is of no use: it renames a loop's output that is also its input, and the parser finds no such value.

    Raises:
        ExportError: something of ds4 has no body; an input has no fixed shape where shapes are given.
    """
    for body in bodies(model):
        if body.name in FORMS:
            FORMS[body.name](body)
    InlinePass()(model)
    left = sorted({n.op_type for n in model.graph if n.domain not in ("", "ai.onnx")})
    if left:
        raise ExportError(
            "an op has no body of standard operators",
            found=", ".join(left),
            expected="the graph as exported, with its functions",
        )
    if shapes is not None:
        fix_shapes(model, shapes)
    widen_constants(model.graph)
    quantise_casts(model.graph)  # last: shapes are not followed through these
    if shapes is not None:
        CommonSubexpressionEliminationPass()(model)  # a fifth of the build's time
    return model
