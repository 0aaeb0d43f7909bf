"""A whole artefact beside the reference, step after step, at every level."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

from numpy.typing import NDArray

from ds4export.parity.bisect import Divergence, first_divergence
from ds4export.parity.end_to_end import EndToEndTally, check_step
from ds4export.parity.levels import Levels
from ds4export.parity.records import OrderProblem, Record, make_record
from ds4export.parity.reference_run import GraphStep
from ds4export.parity.results import Check
from ds4export.parity.scenario import Scenario
from ds4export.parity.subject import MTP
from ds4export.runtime.runner import StepResult

Array = NDArray[Any]


class WholeRun:
    """The artefact's own run, one graph at a time."""

    def __init__(self, levels: Levels, scenario: Scenario) -> None:
        self.levels, self.subject = levels, levels.subject
        self.official = self.subject.manifest.official
        slots, context = scenario.num_slots, scenario.max_context
        self.run = levels.backend.open(num_slots=slots, max_context=context)
        self.tally = EndToEndTally(self.official)
        # the first step outside its bounds, and the artefact's own state before it
        self._strayed: tuple[Record, Mapping[str, Array]] | None = None
        self._streams: Any = None

    def check(self, wanted: GraphStep) -> None:
        """Run one graph of one step and compare it with the reference's at every level."""
        for (name, slot), rows in wanted.late.items():
            self.run.write_state(name, slot, rows)
        state = self._own_state(wanted.graph)
        got = self._step(wanted)
        nodes = self.subject.graphs[wanted.graph].nodes
        record = make_record(
            wanted.graph, wanted.number, wanted.inputs, nodes, wanted.calls, wanted.feeds
        )
        if isinstance(record, OrderProblem):
            self.levels.order(f"{wanted.graph} graph", record)
            return
        self.levels.check(record, self.subject.graphs[wanted.graph].halves)
        outputs = {o.name for o in self.subject.manifest.graphs[wanted.graph].outputs}
        results = {k: v for k, v in wanted.results.items() if k in outputs}
        good = check_step(self.run, record, got, results, self.tally)
        self.tally.floor_step(record, wanted.floor, results)
        if not good and self._strayed is None and not self.official:
            self._strayed = record, state

    @cached_property
    def divergence(self) -> Divergence | None:
        """The first tensor that diverges in the whole run; official numerics has no search of its own."""
        if self._strayed is None:
            return None
        return first_divergence(self.subject, self.levels.backend, *self._strayed)

    def first(self) -> str:
        """Its line; none where nothing diverges but at a tie."""
        found = self.divergence
        return "" if found is None or found.is_tie else found.line

    def checks(self) -> list[Check]:
        """The whole run's verdicts."""
        found = self.divergence if self.tally.failures else None
        is_tie = found is not None and found.is_tie
        return self.tally.checks(f"a tie: {found.line}" if found is not None and is_tie else "")

    def _step(self, wanted: GraphStep) -> StepResult:
        """The artefact's own step; MTP goes on from its own streams."""
        if wanted.graph == MTP:
            return self.run.runner.mtp_step(wanted.inputs, self._streams)
        result = self.run.runner.step(wanted.inputs, streams_in=wanted.feeds.get("streams_in"))
        self._streams = result.streams
        return result

    def _own_state(self, graph: str) -> Mapping[str, Array]:
        """The artefact's state before a step, for the search; official numerics has no search of its own."""
        if self.official or self._strayed is not None:
            return {}
        names = [i.name for i in self.subject.manifest.graphs[graph].inputs]
        return {n: self.run.read_state(n) for n in names if self.subject.is_state(n)}
