"""One pass: caches as packed rows."""

from __future__ import annotations

import onnx_ir as ir

from ds4export.errors import ExportError
from ds4export.passes._run import Tally, a_pass
from ds4export.state import KV, cache_kind, packed_row_bytes

_OUT, _ROPE = "_out", "rope."


@a_pass(needs=("no bodies",), promises=("packed caches",))
def pack_caches(model: ir.Model, tally: Tally) -> ir.Model:
    """Keep window rings, compressed entries and index keys as INT8 rows of codes and scales.

    Before   state.layers.1.window: BFLOAT16 [S, rows, 512] ; state.layers.1.index_keys: BFLOAT16 [S, rows, 128]
    After    state.layers.1.window: INT8 [S, rows, 584] ; state.layers.1.index_keys: INT8 [S, rows, 68]
    Why      the rows hold codes times scales already: nothing is lost, and a cache takes 0.57 of its bytes, keys 0.27
    Refuses  with an error, rows of a width that has no packed form, rows in float32, a graph with bodies
    Needs    no bodies: the bodies compute on bf16 rows, only plugins take packed ones
    Promises packed caches: every such state tensor is INT8, in and out
    """
    if model.functions:
        raise ExportError(
            "caches are packed for plugins only: the ONNX bodies compute on bf16 rows",
            found=f"a graph with {len(model.functions)} functions",
            expected="a lowered graph of ds4 nodes",
            hint="export with native caches; an engine packs them when it is built",
        )
    outputs = {v.name: v for v in model.graph.outputs}
    for value in model.graph.inputs:
        kind = cache_kind(value.name or "")
        if kind is None or value.dtype == ir.DataType.INT8:
            continue
        width = _packed_width(value, kind)
        for one in (value, outputs[f"{value.name}{_OUT}"]):
            assert one.shape is not None, f"{one.name} has no shape"
            one.type = ir.TensorType(ir.DataType.INT8)
            one.shape = ir.Shape([*one.shape.dims[:-1], width])
        tally.rewrote()
    return model


def _packed_width(value: ir.Value, kind: str) -> int:
    """Bytes of a packed row of this state."""
    assert value.shape is not None, f"{value.name} has no shape"
    width = value.shape[-1]
    if value.dtype != ir.DataType.BFLOAT16 or not isinstance(width, int):
        raise ExportError(
            f"the rows of `{value.name}` cannot be packed",
            found=f"{value.dtype} {value.shape}",
            expected="BFLOAT16 rows of a known width",
            hint="export with official numerics",
        )
    try:
        return packed_row_bytes(kind, width, _rope_dims(value) if kind == KV else 0)
    except ExportError as error:
        error.where = value.name or ""
        raise


def _rope_dims(value: ir.Value) -> int:
    """How many dims of a kv row are roped, from the frequencies that its reader takes."""
    for use in value.uses():
        for other in use.node.inputs:
            if other is not None and (other.name or "").startswith(_ROPE) and other.shape:
                return 2 * int(other.shape[0])  # type: ignore[arg-type]
    raise ExportError(
        f"the rows of `{value.name}` cannot be packed",
        found="no reader of it takes frequencies",
        expected=f"an op with an input named `{_ROPE}...`",
        hint="export the checkpoint again with this version of ds4export",
    )
