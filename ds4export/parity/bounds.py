"""Which of an op's bounds applies to which output, and whether a difference is within it.

The numbers are the op's own (`OpDef.tolerance`), each with its reason. Float32, and outputs of official numerics that
no rounding went into (scores, weights, pending rows), are judged call by call over the tensor. What was rounded is
judged by rows call by call, since one flipped rounding in a short tensor is an error of a whole ulp; its bound over
the tensor, and the share of values that are equal, hold for all calls of a run together.
"""

from __future__ import annotations

from ds4export.ops._define import BOUNDARY, F32, OpDef
from ds4export.parity.metrics import Difference

# Least share of bf16 outputs that are equal bit for bit, over a run, official numerics: the same inputs are quantised
# to the same codes, so only a float32 sum that lands on the other side of a rounding differs, measured below 1 in 1000.
# A rounding that is left out or added keeps 5 to 90 % (specification section 17) at errors that the bounds allow.
IDENTICAL = 0.97
# float32 outputs that hold bf16 roundings all the same
ROUNDED_INSIDE = ("moe",)
# Probes drive an op to the ends of its range, where a sum in another order costs more; measured up to 1.3 times.
PROBE_SLACK = 3.0


def is_rounded(op: OpDef, output: str, official: bool) -> bool:
    """Whether roundings of official numerics went into an output."""
    exact = op.outputs[output] == F32 and op.name not in ROUNDED_INSIDE
    return official and not exact


def tensor_bound(op: OpDef, output: str, official: bool) -> float:
    """The relative error over a tensor that an output may have."""
    bounds = op.tolerance
    return bounds.official if is_rounded(op, output, official) else bounds.float32


def beyond(d: Difference, bound: float) -> str:
    """The sentence for a tensor that is farther off than `bound`; empty if it is not."""
    if d.problem or d.relative <= bound:
        return d.problem
    return f"relative error {d.relative:.2g} (bound {bound:g}), worst {d.where()}"


def call_failure(d: Difference, op: OpDef, output: str, official: bool, slack: float = 1.0) -> str:
    """Which bound one call breaks, as a sentence; empty if none."""
    if d.problem or not is_rounded(op, output, official):
        return beyond(d, slack * op.tolerance.float32)
    row = slack * op.tolerance.row
    return (
        f"relative error of a row {d.row:.2g} (bound {row:g}), {d.where()}" if d.row > row else ""
    )


def run_failure(d: Difference, op: OpDef, output: str, official: bool, slack: float = 1.0) -> str:
    """Which bound all calls of a run together break."""
    if d.problem or not is_rounded(op, output, official):
        return ""
    bound = slack * op.tolerance.official
    if d.pooled > bound:
        return f"relative error {d.pooled:.2g} (bound {bound:g}), worst {d.where()}"
    if op.outputs[output] == BOUNDARY and d.identical < IDENTICAL:
        share = f"{d.identical:.1%} of the values are identical (bound {IDENTICAL:.0%})"
        return f"{share}, worst {d.where()}"
    return ""
