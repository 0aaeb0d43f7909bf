"""Single layers of an artefact, one after the other: a real checkpoint is verified within small memory.

Each layer gets seeded streams of unit size (its norms take the size away) and goes through the whole scenario with its
own state; only its weights are mapped. Nothing runs end to end.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ds4export.checkpoint import Checkpoint
from ds4export.config import ModelConfig
from ds4export.errors import RuntimeInputError
from ds4export.model.weights import array_from_tensor, tensor_from_array
from ds4export.parity.levels import Levels
from ds4export.parity.packed_rows import PackedRows
from ds4export.parity.records import OrderProblem, make_record, state_feeds, step_feeds
from ds4export.parity.reference import Recorder, reference_model
from ds4export.parity.scenario import LateStart, Scenario, synthetic_rows
from ds4export.parity.subject import MAIN, Subject
from ds4export.runtime.torch_runner import TorchRunner
from ds4export.state import PACKED_STATE, layer_state


def check_layers(artefact: Path, layers: Sequence[int], available: range) -> None:
    """Refuse layers that the artefact does not hold.

    Raises:
        RuntimeInputError: a number outside its range.
    """
    wrong = [i for i in layers if i not in available]
    if wrong or not layers:
        raise RuntimeInputError(
            "--layers names layers that are not in the artefact",
            where=artefact,
            found=", ".join(map(str, wrong)) or "none",
            expected=f"{available.start} to {available.stop - 1}",
        )


def layer_ops(subject: Subject, layers: Sequence[int]) -> frozenset[str]:
    """The ops that these layers use."""
    prefixes = tuple(f"layers.{i}/" for i in layers)
    return frozenset(n.op for n in subject.graphs[MAIN].nodes if n.path.startswith(prefixes))


class LayerRun:
    """One layer through the scenario."""

    def __init__(
        self, levels: Levels, checkpoint: Checkpoint, scenario: Scenario, layer: int
    ) -> None:
        self.levels, self.scenario, self.layer = levels, scenario, layer
        subject = levels.subject
        self.model = reference_model(subject.artefact, checkpoint, range(layer, layer + 1))
        self.reference = TorchRunner(
            self.model,
            num_slots=scenario.num_slots,
            max_context=scenario.max_context,
            fill=np.nan,
        )
        graph, prefix = subject.graphs[MAIN], f"layers.{layer}/"
        self.nodes = [n for n in graph.nodes if n.path.startswith(prefix)]
        self.halves = [h for h in graph.halves if h.path.startswith(prefix)]

    def step(self, number: int) -> None:
        """One step of the scenario."""
        step = self.scenario.steps[number]
        for start in step.late_starts:
            load_late(self.model.config, self.scenario, start, self.reference.state, self.official)
        before = self.reference.state
        streams = seeded_streams(
            self.model.config, step.inputs.ids.shape, self.seed(number), self.official
        )
        with Recorder() as recorder:
            self.reference.step(step.inputs, want_logits=False, streams_in=streams)
        feeds = state_feeds(before) | step_feeds(step.inputs, "ids")
        feeds[self.nodes[0].inputs[0]] = array_from_tensor(streams)
        record = make_record(MAIN, number, step.inputs, self.nodes, recorder.calls, feeds)
        if isinstance(record, OrderProblem):
            self.levels.order(f"layer {self.layer}", record)
        else:
            self.levels.check(record, self.halves)

    @property
    def official(self) -> bool:
        return self.model.official

    def seed(self, number: int) -> list[int]:
        return [self.scenario.seed, number, self.layer]


def seeded_streams(
    config: ModelConfig, ids_shape: tuple[int, ...], seed: Sequence[int], official: bool
) -> Tensor:
    """Normal streams [B, T, N, D] in the boundary's dtype."""
    shape = (*ids_shape, config.hc_mult, config.hidden_size)
    made = tensor_from_array(np.random.default_rng(list(seed)).standard_normal(shape, np.float32))
    return made.bfloat16() if official else made


def load_late(
    config: ModelConfig,
    scenario: Scenario,
    start: LateStart,
    state: dict[str, Tensor],
    official: bool,
) -> dict[str, Any]:
    """Put synthetic state of a late sequence into `state`; returns the rows by name, for other runners."""
    made = {}
    for key in list(state):
        prefix, number, name = key.split(".")
        ratio = config.ratio(int(number) + (config.num_hidden_layers if prefix == "mtp" else 0))
        specs = {s.name: s for s in layer_state(config, ratio, scenario.max_context)}
        seed = scenario.seed + int(number)
        rows = synthetic_rows(specs[name], ratio, start, seed, official=official)
        if scenario.packed and name in PACKED_STATE:
            rows = PackedRows(config).as_written(rows, PACKED_STATE[name])
        state[key] = state[key].clone()
        state[key][start.slot] = tensor_from_array(rows)
        made[key] = rows
    return made
