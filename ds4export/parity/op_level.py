"""Op by op: every node of a recorded step by itself, with the reference's inputs and the artefact's weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from numpy.typing import NDArray

from ds4export.errors import ParityError
from ds4export.model.weights import array_from_tensor
from ds4export.parity.backends import Backend
from ds4export.parity.bounds import PROBE_SLACK
from ds4export.parity.compare import OutputFinding, compare_call
from ds4export.parity.coverage import Coverage
from ds4export.parity.noise import reordered
from ds4export.parity.probes import clamp_reached, exact, probes
from ds4export.parity.records import Record, inputs_of
from ds4export.parity.reference import Call, call_reference
from ds4export.parity.results import PROBE
from ds4export.parity.subject import OpNode, Subject
from ds4export.parity.tally import Tally
from ds4export.runtime.runner import StepInputs

Array = NDArray[Any]


NUM_FLOORS = 4


class OpLevel:
    """Runs the nodes of recorded steps; each node is also probed, once, in the first chunk that allows it.

    The noise floor is measured on the first calls of a node, which hold prefill and late positions; 0 leaves it out.
    """

    def __init__(
        self,
        subject: Subject,
        backend: Backend,
        tally: Tally,
        coverage: Coverage,
        num_floors: int = NUM_FLOORS,
    ) -> None:
        self.subject, self.backend, self.tally, self.coverage = subject, backend, tally, coverage
        self.num_floors = num_floors
        self._probed: set[tuple[str, str]] = set()
        self._calls: Counter[str] = Counter()

    def check(self, record: Record) -> None:
        """Run every node of the record and merge what is found into the tally."""
        for node in record.nodes:
            call, step = record.calls[node.path], record.step
            inputs = inputs_of(self.subject, record, node)
            floors = self._floor(node, call, step)
            self.tally.add(node, step, self._run(node, call, inputs, step), floors)
            self._calls[node.path] += 1
            self._probe(node, call, inputs, step)

    def _probe(self, node: OpNode, call: Call, inputs: Sequence[Array], step: StepInputs) -> None:
        if (step.num_new <= 1).all():
            return
        for name, make in probes(call).items():
            made = None if (node.path, name) in self._probed else make(call)
            if made is None:
                continue
            self._probed.add((node.path, name))
            probe = call_reference(call.op, made, call.attributes)
            activation = [array_from_tensor(made[0]), *inputs[1:]]
            findings = self._run(node, probe, activation, step, PROBE_SLACK)
            if exact(name):
                findings = [_no_flips(f) for f in findings]
            floors = self._floor(node, probe, step)
            self.tally.add(node, step, findings, floors, level=PROBE, label=f" ({name})")
            if call.op.name == "shared_expert":
                self.coverage.add("clamps act", clamp_reached(probe))

    def _floor(self, node: OpNode, call: Call, step: StepInputs) -> list[OutputFinding]:
        """The reference with its sums in another order, against itself."""
        if self._calls[node.path] >= self.num_floors:
            return []
        again = [array_from_tensor(t) for t in reordered(call).outputs]
        return compare_call(call, again, step)

    def _run(
        self,
        node: OpNode,
        call: Call,
        inputs: Sequence[Array],
        step: StepInputs,
        slack: float = 1.0,
    ) -> list[OutputFinding]:
        """One node against a call of the reference; a node that does not run is a finding."""
        try:
            got = self.backend.run_op(node, inputs)
        except ParityError as cause:
            name, why = next(iter(call.op.outputs)), cause.found or cause.what
            return [OutputFinding(name, failure=f"does not run: {why}")]
        return compare_call(call, got, step, slack=slack)


def _no_flips(found: OutputFinding) -> OutputFinding:
    if found.flips is None or not found.flips.flipped or found.failure:
        return found
    flips = found.flips
    sentence = f"{flips.worst} of {flips.of} indices among equal scores, the lowest come first"
    return replace(found, failure=sentence)
