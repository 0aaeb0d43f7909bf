"""The first tensor that diverges in a whole run, found in two looks: half layers first, then the nodes inside one.

Tapping every value of a large model at once would hold all its activations; so the first look taps the streams
between half layers and all state, the second every node between the last value that agrees and the first that does
not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from ds4export.parity.backends import Backend
from ds4export.parity.compare import OutputFinding, compare_call
from ds4export.parity.describe import PREFIX, first_line
from ds4export.parity.end_to_end import TENSOR_FLOAT32
from ds4export.parity.records import Record
from ds4export.parity.subject import OpNode, Subject

Array = NDArray[Any]
NOTHING = f"{PREFIX}none within one step; the state of an earlier step differs"


@dataclass(frozen=True)
class Divergence:
    """The line that names the first tensor outside its bound; `is_tie` where that is a choice between equals.

    A run in float32 carries errors of its own, so a choice between scores closer than those is nobody's fault, and
    what follows it cannot be compared.
    """

    line: str
    is_tie: bool = False


def first_divergence(
    subject: Subject, backend: Backend, record: Record, state: Mapping[str, Array]
) -> Divergence:
    """Find the first tensor outside its bound.

    Args:
        subject: the artefact.
        backend: runs it.
        record: the reference's step, in which the run left its bounds.
        state: the artefact's own state before that step, by graph input name; it agreed.
    """
    nodes = record.nodes
    feeds = dict(record.values) | dict(state)
    boundary = [i for i, node in enumerate(nodes) if _is_boundary(subject, node)]
    found = _first(subject, backend, record, feeds, [nodes[i] for i in boundary])
    if found is None:
        return Divergence(NOTHING)
    last = nodes.index(found[0])
    start = max((i for i in boundary if i < last), default=-1) + 1
    inner = _first(subject, backend, record, feeds, nodes[start : last + 1])
    node, finding = inner or found
    flips = finding.flips
    is_tie = flips is not None and not flips.problem and flips.relative_margin <= TENSOR_FLOAT32
    return Divergence(first_line(node, finding, record.step), is_tie)


def _is_boundary(subject: Subject, node: OpNode) -> bool:
    """The last node of a half layer, of the embedding or of the head; the nodes that own state."""
    ends = {out for h in subject.graphs[node.graph].halves for out in h.outputs}
    return bool(ends.intersection(node.outputs)) or not node.path.startswith(("layers.", "mtp."))


def _first(
    subject: Subject,
    backend: Backend,
    record: Record,
    feeds: Mapping[str, Array],
    nodes: Sequence[OpNode],
) -> tuple[OpNode, OutputFinding] | None:
    taps = [name for node in nodes for name in node.outputs]
    values = backend.trace(record.graph, feeds, taps)
    for node in nodes:
        got = [values[name] for name in node.outputs]
        for finding in compare_call(
            record.calls[node.path], got, record.step, carried=TENSOR_FLOAT32
        ):
            if finding.failure:
                return node, finding
    return None
