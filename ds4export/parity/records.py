"""One step of the reference, laid beside the artefact's graph: every value by the name it has there.

The order of the reference's calls is the order of the graph's nodes, so a call gets the path of its node. What a node
is fed with follows the *graph's* wiring: where the graph reads another value than the reference does, the op is given
that other value and its result shows it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray
from torch import Tensor

from ds4export.model.weights import array_from_tensor
from ds4export.parity.reference import Call
from ds4export.parity.subject import Half, OpNode, Subject
from ds4export.runtime.runner import StepInputs

Array = NDArray[Any]


@dataclass(frozen=True)
class Record:
    """The reference's values of one graph in one step.

    `number` is the step's; `calls` are by node path; `values` hold step inputs, state before the step and every
    output, by value name.
    """

    graph: str
    number: int
    step: StepInputs
    nodes: tuple[OpNode, ...]
    calls: Mapping[str, Call]
    values: Mapping[str, Array]


@dataclass(frozen=True)
class OrderProblem:
    """The graph does not hold the reference's calls; `node` is the first that differs."""

    node: OpNode | None
    sentence: str


def make_record(
    graph: str,
    number: int,
    step: StepInputs,
    nodes: Sequence[OpNode],
    calls: Sequence[Call],
    feeds: Mapping[str, Array],
) -> Record | OrderProblem:
    """Zip calls with nodes; `feeds` are step inputs and state by the graph's names."""
    for node, call in zip(nodes, calls, strict=False):
        if node.op != call.op.name:
            return OrderProblem(
                node, f"the node `{node.path}` is `{node.op}`, the reference calls `{call.op.name}`"
            )
    if len(nodes) != len(calls):
        found = f"the graph has {len(nodes)} ops, the reference calls {len(calls)}"
        return OrderProblem(nodes[-1] if nodes else None, found)
    values = dict(feeds)
    for node, call in zip(nodes, calls, strict=True):
        values |= {n: array_from_tensor(t) for n, t in zip(node.outputs, call.outputs, strict=True)}
    by_path = {n.path: c for n, c in zip(nodes, calls, strict=True)}
    return Record(graph, number, step, tuple(nodes), by_path, values)


def inputs_of(subject: Subject, record: Record, part: OpNode | Half) -> list[Array]:
    """What a node or a half is fed with: weights from the artefact, all else from the reference."""
    arrays = []
    for name in part.inputs:
        fixed = subject.fixed(record.graph, name)
        value = record.values.get(name) if fixed is None else fixed
        assert value is not None, f"`{name}` of `{part.path}` is fed by nothing"
        arrays.append(value)
    return arrays


def state_feeds(state: Mapping[str, Tensor]) -> dict[str, Array]:
    """The reference's state under the graph's names."""
    return {f"state.{name}": array_from_tensor(t) for name, t in state.items()}


def step_feeds(step: StepInputs, ids: str) -> dict[str, Array]:
    """Step inputs under the graph's names; `ids` is `ids` or `next_ids`."""
    names = ("slots", "positions", "num_new", "logit_rows")
    return {ids: step.ids} | {n: getattr(step, n) for n in names}
