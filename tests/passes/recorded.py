"""The main graph of a recorded checkpoint, and steps of it in ONNX Runtime on NaN-filled state."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import ml_dtypes
import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray

from ds4export.checkpoint import Checkpoint, open_checkpoint
from ds4export.graph import GraphPlan, build_graphs
from ds4export.graph.bodies import attach_bodies
from ds4export.model.weights import expert_order, rows_of_order, weight_array
from ds4export.ops._body import BodyOptions
from tests.kit.checkpoints import recorded

SLOTS, ROWS = 3, 61
BF16 = 16  # ONNX's number for the type
Logits = list[NDArray[np.float32]]


@cache
def _traced(name: str, official: bool) -> ir.Model:
    checkpoint = checkpoint_of(name)
    c = checkpoint.config
    layers = range(c.num_hidden_layers)
    rows = tuple(rows_of_order(expert_order(checkpoint, layers)))
    plan = GraphPlan(c, layers, official, False, False, rows)
    return attach_bodies(build_graphs(plan).main, BodyOptions(official))


def main_graph(name: str, *, official: bool) -> ir.Model:
    """A layered graph with bodies of your own, as the exporter hands it to the passes."""
    return _traced(name, official).clone()


@cache
def checkpoint_of(name: str) -> Checkpoint:
    return open_checkpoint(recorded(name))


def logits(
    model: ir.Model,
    checkpoint: Checkpoint,
    level: ort.GraphOptimizationLevel,
    chunks: Sequence[int],
    seed: int,
) -> Logits:
    """Logits of two sequences, chunk by chunk, the state bound in place."""
    options = ort.SessionOptions()
    options.graph_optimization_level = level
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), options)
    rng, binding, position, found = np.random.default_rng(seed), session.io_binding(), 0, []
    kept = [_bind(binding, value, checkpoint) for value in model.graph.inputs]
    for count in chunks:
        step = {
            "ids": rng.integers(0, checkpoint.config.vocab_size, (2, count)),
            "slots": np.array([2, 0]),
            "positions": np.full(2, position),
            "num_new": np.array([count, max(count - 1, 1)]),
            "logit_rows": np.tile(np.arange(count), (2, 1)),
        }
        for name, array in step.items():
            binding.bind_cpu_input(name, array.astype(np.int64))
        binding.bind_output("logits")
        session.run_with_iobinding(binding)
        found.append(
            dict(zip(_names(session), binding.get_outputs(), strict=True))["logits"].numpy()
        )
        position += max(count - 1, 1)
    assert kept, "the buffers live as long as the binding"
    return found


def _names(session: ort.InferenceSession) -> list[str]:
    """Outputs in the order in which they are bound: the state first, then the logits."""
    names = [o.name for o in session.get_outputs()]
    return [n for n in names if n != "logits"] + ["logits"]


def _bind(binding: ort.IOBinding, value: ir.Value, checkpoint: Checkpoint) -> ort.OrtValue | None:
    """Bind a weight, or a state tensor to its input and its output alike."""
    name = value.name or ""
    if name.startswith("state."):
        assert value.shape is not None, f"{name} has no shape"
        dims = [SLOTS, ROWS, int(value.shape[2])]  # type: ignore[arg-type]
        dtype = np.float32 if value.dtype == ir.DataType.FLOAT else ml_dtypes.bfloat16
        held = _ort_value(np.full(dims, np.nan, dtype))
        binding.bind_ortvalue_output(f"{name}_out", held)
    elif "." in name or name.startswith("hc_head"):
        order = expert_order(checkpoint, range(checkpoint.config.num_hidden_layers))
        held = _ort_value(weight_array(checkpoint, name, order))
    else:
        return None
    binding.bind_ortvalue_input(name, held)
    return held


def _ort_value(array: NDArray[np.generic]) -> ort.OrtValue:
    if array.dtype == ml_dtypes.bfloat16:
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array.view(np.uint16), BF16)
    return ort.OrtValue.ortvalue_from_numpy(array)
