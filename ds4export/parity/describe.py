"""Names for people: a node's path as layer and op, a finding as one line."""

from __future__ import annotations

from ds4export.ops import ALL_OPS
from ds4export.parity.compare import BY_ROW, OutputFinding
from ds4export.parity.subject import OpNode
from ds4export.runtime.runner import StepInputs

PREFIX = "first divergence: "
_TITLES = {"indexer_topk": "indexer top-k", "route_scores": "router", "route_hash": "hash router"}


def place(path: str) -> str:
    """`layers.7/attn/wq_a/linear_fp8` -> `layer 7`; `mtp.0/…` -> `MTP block 0`; else the part of the model."""
    head = path.split("/")[0]
    kind, _, number = head.partition(".")
    names = {"layers": "layer", "mtp": "MTP block"}
    return f"{names[kind]} {number}" if kind in names else head


def op_title(node: OpNode) -> str:
    """The op, with the weight's module where several nodes share an op: `attn wq_a linear_fp8`."""
    inner = [p for p in node.path.split("/")[1:-1] if p not in ("attn", "ffn")]
    title = _TITLES.get(node.op, node.op)
    return title if node.op in _TITLES else " ".join((*inner, title))


def first_line(node: OpNode, finding: OutputFinding, step: StepInputs) -> str:
    """The line that a diverging run ends with."""
    outputs = ALL_OPS[node.op].outputs
    output = f" {finding.name}" if len(outputs) > 1 and finding.flips is None else ""
    what, flips = finding.failure, finding.flips
    if flips is not None and flips.index and not flips.problem:
        at = _at(node, finding.name, flips.index, step)
        what = f"{flips.worst} of {flips.of} indices{at}, margin {flips.margin:.1g}"
    else:
        index = flips.index if flips is not None else finding.difference.index
        what += _at(node, finding.name, index, step)
    return f"{PREFIX}{place(node.path)}, {op_title(node)}{output}, {what}; all before agrees"


def _at(node: OpNode, output: str, index: tuple[int, ...], step: StepInputs) -> str:
    """Where an element is: the absolute position of [b, t, ...], or slot and row of a state."""
    if len(index) < 2:
        return ""
    b, t = index[:2]
    if output in (ALL_OPS[node.op].aliases or {}):
        return f" in slot {b}, row {t}"
    if b >= len(step.positions):
        return ""
    if node.op in BY_ROW:
        t = int(step.logit_rows[b, t])
    return f" at position {int(step.positions[b]) + t}"
