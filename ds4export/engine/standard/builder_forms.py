"""Four forms that the parser of TensorRT for RTX takes and its builder does not, written otherwise.

    float8 between two casts        refused: such a tensor may come from a Quantize layer only
    a constant of int8              refused: it passes for quantised
    a size that hangs on values     refused: an input of the engine would be a shape, with values in a profile
    a long chain of c / sum(c)      each sum is fused into what reads it, and the plan grows twofold with each

Owns a form that means the same for each. Refuses a body in which the form is not the one it knows.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir

from ds4export.engine.standard._insert import Inserter, nodes_with_scopes
from ds4export.passes._bodies import constant_array

E4M3, FLOAT = ir.DataType.FLOAT8E4M3FN, ir.DataType.FLOAT


def quantise_casts(graph: ir.Graph) -> None:
    """Float32 -> e4m3 -> float32 as QuantizeLinear and DequantizeLinear with a scale of 1: the same rounding."""
    for scope, node in nodes_with_scopes(graph):
        if node.op_type != "Cast" or _target(node) != E4M3:
            continue
        source = node.inputs[0]
        assert source is not None, "Cast without data"
        put = Inserter(scope, node)
        scale = put.constant(np.array(1, np.float32))
        zero = put.constant(np.array(0, ml_dtypes.float8_e4m3fn))
        made = put.op(
            "DequantizeLinear", put.op("QuantizeLinear", source, scale, zero), scale, zero
        )
        for back in list(node.outputs[0].consumers()):
            assert back.op_type == "Cast", f"{back.op_type} reads a float8 value"
            assert _target(back) == FLOAT, "a float8 value is not read as float32"
            back.outputs[0].replace_all_uses_with(made, replace_graph_outputs=True)
            scope.remove(back, safe=True)
        scope.remove(node, safe=True)


def _target(cast: ir.Node) -> int:
    return cast.attributes["to"].as_int()


def widen_constants(graph: ir.Graph) -> None:
    """An int8 table that is cast to float32 is stored as float32."""
    for scope, node in nodes_with_scopes(graph):
        if node.op_type != "Cast" or _target(node) != FLOAT:
            continue
        table = constant_array(node.inputs[0])
        if table is not None and table.dtype == np.int8:
            made = Inserter(scope, node).constant(table.astype(np.float32))
            node.outputs[0].replace_all_uses_with(made)
            scope.remove(node, safe=True)


def read_all_entries(function: ir.Function) -> None:
    """All rows of a cache but its scratch row, instead of as many as the longest sequence of the batch has.

    Later places mask what a sequence does not have, so that nothing else changes.
    """
    cache = next(v for v in function.inputs if v.name in ("entries", "keys"))
    (most,) = (
        n for n in function if n.op_type == "ReduceMax" and n.attributes.get_int("keepdims", 1) == 0
    )
    put = Inserter(function, most)
    rows = put.op("Sub", put.op("Shape", cache, start=1, end=2), put.const(1))
    most.outputs[0].replace_all_uses_with(put.op("Squeeze", rows, put.const(0)))
    function.remove(most, safe=True)


def sum_by_products(function: ir.Function) -> None:
    """Sums along one of the last two axes as products with a matrix of ones, which has the sum in every place.

    A product is a kernel of its own: what it reads is computed once.
    """
    for scope, node in nodes_with_scopes(function):
        if node.op_type != "ReduceSum" or node.attributes.get_int("keepdims", 1) == 0:
            continue
        data, axes = node.inputs[0], constant_array(node.inputs[1])
        assert data is not None, "ReduceSum without data"
        assert axes is not None, "ReduceSum without constant axes"
        (axis,) = axes.tolist()
        assert axis in (-1, -2), f"a sum along axis {axis}"
        put = Inserter(scope, node)
        length = put.op("Gather", put.op("Shape", data), put.const(axis))
        ones = put.filled(1.0, put.op("Concat", length, length, axis=0))
        made = put.op("MatMul", *((data, ones) if axis == -1 else (ones, data)))
        node.outputs[0].replace_all_uses_with(made)
        scope.remove(node, safe=True)
