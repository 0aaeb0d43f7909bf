"""The reference over a scenario: every graph of every step with its calls, its results and its noise floor.

Owns the reference's state, and the floor's: the same model with reordered sums. Knows nothing of the artefact's graphs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ds4export.model.transformer import Transformer
from ds4export.model.weights import array_from_tensor, tensor_from_array
from ds4export.parity.layer_run import load_late, seeded_streams
from ds4export.parity.noise import ReorderedOps
from ds4export.parity.records import state_feeds, step_feeds
from ds4export.parity.reference import Call, Recorder
from ds4export.parity.scenario import Scenario
from ds4export.parity.subject import MAIN, MTP
from ds4export.runtime.runner import StepInputs, StepResult
from ds4export.runtime.torch_runner import TorchRunner

Array = NDArray[Any]


@dataclass(frozen=True)
class GraphStep:
    """One graph of one step, as the reference has it.

    `feeds` are step inputs, streams and state before the step under the graph's names; `late` is the synthetic state
    that was loaded before, by state name and slot; `results` and `floor` hold `logits` and `streams`.
    """

    graph: str
    number: int
    inputs: StepInputs
    calls: tuple[Call, ...]
    feeds: Mapping[str, Array]
    results: Mapping[str, Array]
    floor: Mapping[str, Array]
    late: Mapping[tuple[str, int], Array] = field(default_factory=dict)


def reference_steps(
    model: Transformer, scenario: Scenario, *, with_floor: bool = True
) -> Iterator[GraphStep]:
    """The main graph of each step, and MTP where the model has it, in the order they run."""
    run = _ReferenceRun(model, scenario, with_floor=with_floor)
    for number in range(len(scenario.steps)):
        yield from run.step(number)


class _ReferenceRun:
    def __init__(self, model: Transformer, scenario: Scenario, *, with_floor: bool) -> None:
        self.model, self.scenario, self.with_floor = model, scenario, with_floor
        slots, context = scenario.num_slots, scenario.max_context
        self.runner, self.floor = (
            TorchRunner(model, num_slots=slots, max_context=context, fill=np.nan) for _ in range(2)
        )

    def step(self, number: int) -> Iterator[GraphStep]:
        late = self._load_late(number)
        streams = self._streams_in(number)
        made, results = self._graph(MAIN, number, streams, late)
        yield made
        if self.runner.has_mtp:
            yield self._graph(MTP, number, results, {})[0]

    def _load_late(self, number: int) -> dict[tuple[str, int], Array]:
        late = {}
        for start in self.scenario.steps[number].late_starts:
            state = self.runner.state
            rows = load_late(self.model.config, self.scenario, start, state, self.model.official)
            for key, array in rows.items():
                floor = self.floor.state[key] = self.floor.state[key].clone()
                floor[start.slot] = tensor_from_array(array)
                late[f"state.{key}", start.slot] = array
        return late

    def _streams_in(self, number: int) -> tuple[Tensor | None, Tensor | None]:
        """Of a range that does not begin with layer 0."""
        if self.model.layer_range.start == 0:
            return None, None
        shape = self.scenario.steps[number].inputs.ids.shape
        seed = [self.scenario.seed, number]
        made = seeded_streams(self.model.config, shape, seed, self.model.official)
        return made, made

    def _graph(
        self,
        graph: str,
        number: int,
        streams: tuple[Tensor | None, Tensor | None],
        late: Mapping[tuple[str, int], Array],
    ) -> tuple[GraphStep, tuple[Tensor, Tensor]]:
        step = self.scenario.steps[number]
        inputs = step.inputs if graph == MAIN else step.mtp_inputs()
        feeds = state_feeds(self.runner.state)
        feeds |= step_feeds(inputs, "ids" if graph == MAIN else "next_ids")
        if streams[0] is not None:
            name = "streams_in" if graph == MAIN else "streams"
            feeds[name] = array_from_tensor(streams[0])
        with Recorder() as recorder:
            want = _run(self.runner, graph, inputs, streams[0])
        again = want
        if self.with_floor:
            with ReorderedOps():
                again = _run(self.floor, graph, inputs, streams[1])
        made = GraphStep(
            graph,
            number,
            inputs,
            tuple(recorder.calls),
            feeds,
            _results(want),
            _results(again) if self.with_floor else {},
            late,
        )
        return made, (want.streams, again.streams)


def _run(runner: TorchRunner, graph: str, inputs: StepInputs, streams: Any) -> StepResult:
    if graph == MTP:
        return runner.mtp_step(inputs, streams)
    return runner.step(inputs, streams_in=streams)


def _results(result: StepResult) -> dict[str, Array]:
    made = {"streams": array_from_tensor(result.streams)}
    return made if result.logits is None else made | {"logits": result.logits}
