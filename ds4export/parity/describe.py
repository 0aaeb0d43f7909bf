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
    what = finding.failure
    if finding.flips is not None and finding.flips.index and not finding.flips.problem:
        flips = finding.flips
        what = f"{flips.worst} of {flips.of} indices{_at(node, flips.index, step)}, margin {flips.margin:.1g}"
    else:
        index = finding.flips.index if finding.flips else finding.difference.index
        what += _at(node, index, step) if finding.name not in _state(node) else ""
    return f"{PREFIX}{place(node.path)}, {op_title(node)}{output}, {what}; all before agrees"


def _state(node: OpNode) -> tuple[str, ...]:
    return tuple(ALL_OPS[node.op].aliases or {})


def _at(node: OpNode, index: tuple[int, ...], step: StepInputs) -> str:
    """The absolute position of an element [b, t, ...]."""
    if len(index) < 2 or index[0] >= len(step.positions):
        return ""
    b, t = index[:2]
    if node.op in BY_ROW:
        t = int(step.logit_rows[b, t])
    return f" at position {int(step.positions[b]) + t}"
