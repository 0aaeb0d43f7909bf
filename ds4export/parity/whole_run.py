"""A whole artefact beside the reference, step after step, at every level."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ds4export.model.transformer import Transformer
from ds4export.model.weights import array_from_tensor, tensor_from_array
from ds4export.parity.bisect import first_divergence
from ds4export.parity.end_to_end import EndToEndTally, check_step
from ds4export.parity.layer_run import load_late, seeded_streams
from ds4export.parity.levels import Levels
from ds4export.parity.noise import ReorderedOps
from ds4export.parity.records import OrderProblem, Record, make_record, state_feeds, step_feeds
from ds4export.parity.reference import Recorder
from ds4export.parity.scenario import Scenario
from ds4export.parity.subject import MAIN, MTP
from ds4export.runtime.torch_runner import TorchRunner

Array = NDArray[Any]


class WholeRun:
    """Three runners over one scenario: the reference, the reference with reordered sums, the artefact."""

    def __init__(self, levels: Levels, model: Transformer, scenario: Scenario) -> None:
        self.levels, self.scenario, self.subject = levels, scenario, levels.subject
        self.config, self.official = model.config, model.official
        slots, context = scenario.num_slots, scenario.max_context
        self.reference, self.floor = (
            TorchRunner(model, num_slots=slots, max_context=context, fill=np.nan) for _ in range(2)
        )
        self.run = levels.backend.open(num_slots=slots, max_context=context)
        self.tally = EndToEndTally(self.official)
        self.line = ""  # the first divergence, once there is one

    def step(self, number: int) -> None:
        """One step of the scenario: main graph, then MTP."""
        for start in self.scenario.steps[number].late_starts:
            rows = load_late(self.config, self.scenario, start, self.reference.state, self.official)
            for key, array in rows.items():
                state = self.floor.state[key] = self.floor.state[key].clone()
                state[start.slot] = tensor_from_array(array)
                self.run.write_state(f"state.{key}", start.slot, array)
        streams = self._graph(MAIN, number, self._streams_in(number))
        if MTP in self.subject.graphs:
            self._graph(MTP, number, streams)

    def _streams_in(self, number: int) -> Any:
        """Of a range that does not begin with layer 0, one for each runner."""
        if self.subject.manifest.layers[0] == 0:
            return (None, None, None)
        shape = self.scenario.steps[number].inputs.ids.shape
        made = seeded_streams(self.config, shape, [self.scenario.seed, number], self.official)
        return made, made, array_from_tensor(made)

    def _graph(self, graph: str, number: int, streams: Any) -> Any:
        """One graph in one step; returns the streams of the three runners."""
        step = self.scenario.steps[number]
        inputs = step.inputs if graph == MAIN else step.mtp_inputs()
        before, own_state = self.reference.state, self._own_state(graph)
        with Recorder() as recorder:
            want = _run(self.reference, graph, inputs, streams[0])
        with ReorderedOps():
            again = _run(self.floor, graph, inputs, streams[1])
        got = _run(self.run.runner, graph, inputs, streams[2])
        feeds = state_feeds(before) | step_feeds(inputs, "ids" if graph == MAIN else "next_ids")
        if streams[0] is not None:
            name = "streams_in" if graph == MAIN else "streams"
            feeds[name] = array_from_tensor(streams[0])
        nodes = self.subject.graphs[graph].nodes
        record = make_record(graph, number, inputs, nodes, recorder.calls, feeds)
        if isinstance(record, OrderProblem):
            self.levels.order(f"{graph} graph", record)
        else:
            self.levels.check(record, self.subject.graphs[graph].halves)
            self._end_to_end(record, got, want, again, own_state)
        return want.streams, again.streams, got.streams

    def _end_to_end(
        self, record: Record, got: Any, want: Any, again: Any, state: Mapping[str, Array]
    ) -> None:
        wanted = self._results(record.graph, want)
        good = check_step(self.run, record, got, wanted, self.tally)
        self.tally.floor_step(record, self._results(record.graph, again), wanted)
        if not good and not self.line and not self.official:
            self.line = first_divergence(self.subject, self.levels.backend, record, state)

    def _results(self, graph: str, result: Any) -> dict[str, Array]:
        """The reference's results that the graph has, too."""
        outputs = {o.name for o in self.subject.manifest.graphs[graph].outputs}
        wanted = {}
        if "logits" in outputs:
            wanted["logits"] = result.logits
        if "streams" in outputs:
            wanted["streams"] = array_from_tensor(result.streams)
        return wanted

    def _own_state(self, graph: str) -> dict[str, Array]:
        """The artefact's state before a step, for the search; official numerics has no search of its own."""
        if self.official or self.line:
            return {}
        names = [i.name for i in self.subject.manifest.graphs[graph].inputs]
        return {n: self.run.read_state(n) for n in names if self.subject.is_state(n)}


def _run(runner: Any, graph: str, inputs: Any, streams: Any) -> Any:
    if graph == MTP:
        return runner.mtp_step(inputs, streams)
    return runner.step(inputs, streams_in=streams)
