"""One pass: nodes on constants are computed now."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from ds4export.passes._bodies import (
    Constants,
    all_nodes,
    bodies,
    constant_array,
    replace_uses,
    sweep,
)
from ds4export.passes._run import Tally, a_pass

# Elements of a result that is stored: a body stays small.
MAX_ELEMENTS = 1024
# One correctly rounded operation each, so that numpy and every runtime agree bit by bit.
EXACT: dict[str, Callable[..., np.ndarray | None]] = {
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "Sqrt": np.sqrt,
    "Reciprocal": lambda x: np.float32(1) / x,
    "LessOrEqual": np.less_equal,
    "Range": np.arange,
    "Unsqueeze": lambda x, axes: np.expand_dims(x, tuple(axes.tolist())),
    "Reshape": lambda x, target: x.reshape(target) if (target > 0).all() else None,
}


@a_pass(needs=("sizes folded",), promises=("constants folded",))
def fold_constants(model: ir.Model, tally: Tally) -> ir.Model:
    """Replace a node whose inputs are constants by its result.

    Before   f = Cast<FLOAT>([512]) ; s = Sqrt(f) ; r = Reciprocal(s)
    After    r = Constant [0.044194173]
    Why      a dispatch less in every layer and loop, and work that ONNX Runtime would do again in every layer at load
    Refuses  operators that round more than once (exp, log, sums); results above a thousand elements; float division
    Needs    sizes folded: widths are constants
    Promises constants folded: no node of EXACT, and no Cast to float, reads constants only; exact
    """
    for body in bodies(model):
        constants = Constants(body)
        for node in list(all_nodes(body)):
            arrays = [constant_array(v) for v in node.inputs]
            if arrays and all(a is not None for a in arrays):
                _fold(node, arrays, body.name, constants, tally)
        sweep(body)
    return model


def _fold(
    node: ir.Node, arrays: list[np.ndarray | None], body: str, constants: Constants, tally: Tally
) -> None:
    where = f"{body}.{node.outputs[0].name}"
    if node.op_type == "Cast" and node.attributes["to"].as_int() == ir.DataType.FLOAT:
        result = arrays[0].astype(np.float32) if arrays[0] is not None else None
    elif node.op_type in EXACT:
        result = EXACT[node.op_type](*arrays)
    else:
        tally.refused(f"{node.op_type} may round differently elsewhere", where)
        return
    if result is None or result.size > MAX_ELEMENTS:
        tally.refused("the result is large, or its shape a code", where)
        return
    replace_uses(
        node.outputs[0], constants.value(np.ascontiguousarray(result).reshape(result.shape))
    )
    tally.rewrote()
