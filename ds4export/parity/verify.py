"""`verify`: one artefact, one scenario, every level; the result is a `Report`."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ds4export.artefact import open_artefact_folder
from ds4export.errors import RuntimeInputError
from ds4export.model.weights import array_from_tensor, tensor_from_array
from ds4export.parity.backends import DEFAULT, check_backend, open_backend
from ds4export.parity.bisect import first_divergence
from ds4export.parity.coverage import Coverage
from ds4export.parity.end_to_end import EndToEndTally, check_step
from ds4export.parity.half_level import HalfTally, check_half
from ds4export.parity.noise import ReorderedOps
from ds4export.parity.op_level import OpLevel
from ds4export.parity.recorded import open_vectors, write_dump
from ds4export.parity.records import OrderProblem, Record, make_record, state_feeds, step_feeds
from ds4export.parity.reference import Recorder, open_reference_checkpoint, reference_model
from ds4export.parity.results import COVERAGE, FAILED, OP, PASSED, SKIPPED, Check, Report
from ds4export.parity.scenario import LateStart, Scenario, make_scenario, synthetic_rows
from ds4export.parity.subject import MAIN, MTP, Subject
from ds4export.parity.tally import Tally
from ds4export.parity.vectors import VectorTally, check_vectors
from ds4export.report import Reporter, format_count
from ds4export.runtime.torch_runner import TorchRunner
from ds4export.state import layer_state

Array = NDArray[Any]


@dataclass(frozen=True)
class VerifyOptions:
    """What a user may choose. `layers`: only these main layers, one at a time, with seeded streams."""

    backend: str = DEFAULT
    vectors: Path | None = None
    dump: Path | None = None
    layers: tuple[int, ...] | None = None
    checkpoint: Path | None = None
    seed: int = 0
    late: int | None = None  # where the late sequence starts, see `scenario`


def verify_artefact(path: Path, options: VerifyOptions, reporter: Reporter) -> Report:
    """Verify an artefact against the PyTorch definition over its checkpoint.

    Raises:
        Ds4Error: the artefact, its checkpoint or the back end cannot be used. What diverges is in the report.
    """
    started = time.perf_counter()
    check_backend(options.backend)
    check_options(options)
    with reporter.stage("open") as stage:
        session = _Session(path, options)
        stage.done(*session.facts())
    with reporter.stage("scenario") as stage:
        scenario = session.scenario
        with reporter.progress("steps", len(scenario.steps)) as advance:
            for number in range(len(scenario.steps)):
                session.step(number)
                advance(1)
        stage.done(
            format_count(len(scenario.steps), "step"), format_count(scenario.num_tokens, "token")
        )
    if options.vectors is not None:
        with reporter.stage("vectors") as stage:
            stage.done(*session.vectors(options.vectors, options.dump))
    return session.report(time.perf_counter() - started)


def check_options(options: VerifyOptions) -> None:
    """Refuse options that do not go together, before any work.

    Raises:
        RuntimeInputError: `dump` without `vectors`, or `vectors` with `layers`.
    """
    if options.dump is not None and options.vectors is None:
        raise RuntimeInputError(
            "--dump needs recorded inputs to start from", hint="add --vectors DIR"
        )
    if options.vectors is not None and options.layers is not None:
        raise RuntimeInputError("--vectors needs the whole model", hint="leave --layers out")


class _Session:
    """The reference and the artefact side by side, and the tallies of every level."""

    def __init__(self, path: Path, options: VerifyOptions) -> None:
        artefact = open_artefact_folder(path, options.checkpoint)
        self.options, self.path, manifest = options, path, artefact.manifest
        self.subject = Subject(artefact)
        self.backend = open_backend(options.backend, self.subject)
        checkpoint = open_reference_checkpoint(artefact, options.checkpoint)
        layers = range(*manifest.layers)
        self.official, self.config = manifest.official, manifest.config
        self.model = reference_model(artefact, checkpoint, layers)
        ratios = [self.config.ratio(i) for i in layers]
        if MTP in self.subject.graphs:
            ratios.append(self.config.ratio(self.config.num_hidden_layers))
        self.scenario: Scenario = make_scenario(
            self.config, frozenset(ratios), seed=options.seed, late=options.late
        )
        pool = {"num_slots": self.scenario.num_slots, "max_context": self.scenario.max_context}
        self.reference = TorchRunner(self.model, **pool, fill=np.nan)
        self.floor = TorchRunner(self.model, **pool, fill=np.nan)
        self.run = self.backend.open(**pool)
        self.coverage = Coverage(self.config, self.subject.ops)
        self.ops = Tally(self.official)
        self.op_level = OpLevel(self.subject, self.backend, self.ops, self.coverage)
        self.halves = HalfTally(self.official)
        self.whole = EndToEndTally(self.official)
        self.problems: list[Check] = []
        self.line = ""  # the first divergence of the whole run
        self.recorded = VectorTally()

    def facts(self) -> Sequence[str]:
        manifest = self.subject.manifest
        nodes = sum(len(g.nodes) for g in self.subject.graphs.values())
        begin, end = manifest.layers
        return (f"layers {begin}:{end}", f"{nodes} ops", manifest.numerics, self.backend.name)

    def step(self, number: int) -> None:
        """One step of the scenario: main graph, then MTP, at every level."""
        step = self.scenario.steps[number]
        for start in step.late_starts:
            self._load(start)
        self.coverage.step(step.inputs)
        streams_in = self._streams_in(number)
        streams = self._graph(MAIN, number, streams_in)
        if MTP in self.subject.graphs:
            self._graph(MTP, number, streams)

    def _graph(self, graph: str, number: int, streams: Any) -> Any:
        """One graph in one step; returns the streams of reference, noise floor and artefact."""
        step = self.scenario.steps[number]
        inputs = step.inputs if graph == MAIN else step.mtp_inputs()
        before = self.reference.state
        own_state = self._own_state(graph)
        with Recorder() as recorder:
            want = _run(self.reference, graph, inputs, streams and streams[0])
        with ReorderedOps():
            again = _run(self.floor, graph, inputs, streams and streams[1])
        got = _run(self.run.runner, graph, inputs, streams and streams[2])
        feeds = state_feeds(before) | step_feeds(inputs, "ids" if graph == MAIN else "next_ids")
        if streams is not None:
            feeds["streams_in" if graph == MAIN else "streams"] = array_from_tensor(streams[0])
        nodes = self.subject.graphs[graph].nodes
        record = make_record(graph, number, inputs, nodes, recorder.calls, feeds)
        if isinstance(record, OrderProblem):
            self._order(graph, record)
        else:
            self._levels(record, got, want, again, own_state)
        return want.streams, again.streams, got.streams

    def _levels(
        self, record: Record, got: Any, want: Any, again: Any, state: Mapping[str, Array]
    ) -> None:
        for path, call in record.calls.items():
            self.coverage.call(path, call, record.step)
        self.op_level.check(record)
        for half in self.subject.graphs[record.graph].halves:
            check_half(self.subject, self.backend, record, half, self.halves)
        wanted = self._wanted(record.graph, want)
        good = check_step(self.run, record, got, wanted, self.whole)
        self.whole.floor_step(record, self._wanted(record.graph, again), wanted)
        if not good and not self.line and not self.official:
            self.line = first_divergence(self.subject, self.backend, record, state)

    def _wanted(self, graph: str, result: Any) -> dict[str, Array]:
        outputs = {o.name for o in self.subject.manifest.graphs[graph].outputs}
        wanted = {}
        if "logits" in outputs:
            wanted["logits"] = result.logits
        if "streams" in outputs:
            wanted["streams"] = array_from_tensor(result.streams)
        return wanted

    def _own_state(self, graph: str) -> dict[str, Array]:
        if self.official or self.line:
            return {}
        names = [i.name for i in self.subject.manifest.graphs[graph].inputs]
        return {n: self.run.read_state(n) for n in names if self.subject.is_state(n)}

    def _order(self, graph: str, problem: OrderProblem) -> None:
        name = f"{graph} graph"
        if all(c.name != name for c in self.problems):
            self.problems.append(Check(OP, name, FAILED, problem.sentence))

    def vectors(self, folder: Path, dump: Path | None) -> Sequence[str]:
        """Compare with recorded vectors; returns the facts of the stage line."""
        opened = open_vectors(folder, official=self.official)
        self.recorded = check_vectors(self.subject, self.backend, opened)
        facts = [format_count(len(self.recorded.found), "key")]
        if dump is not None:
            path = write_dump(dump, official=self.official, arrays=self.recorded.computed)
            facts.append(f"{len(self.recorded.computed)} tensors in {path}")
        return facts

    def _load(self, start: LateStart) -> None:
        """Synthetic state of a late sequence, the same everywhere."""
        c = self.config
        for key in self.reference.state:
            prefix, number, name = key.split(".")
            ratio = c.ratio(int(number) + (c.num_hidden_layers if prefix == "mtp" else 0))
            specs = layer_state(c, ratio, self.scenario.max_context)
            spec = next(s for s in specs if s.name == name)
            seed = self.options.seed + int(number)
            rows = synthetic_rows(spec, ratio, start, seed, official=self.official)
            for runner in (self.reference, self.floor):
                runner.state[key] = _with_rows(runner.state[key], start.slot, rows)
            self.run.write_state(f"state.{key}", start.slot, rows)

    def _streams_in(self, number: int) -> Any:
        if self.subject.manifest.layers[0] == 0:
            return None
        step, c = self.scenario.steps[number].inputs, self.config
        rng = np.random.default_rng([self.options.seed, number])
        made = rng.standard_normal((*step.ids.shape, c.hc_mult, c.hidden_size), np.float32)
        tensor = tensor_from_array(made)
        tensor = tensor.bfloat16() if self.official else tensor
        return tensor, tensor, array_from_tensor(tensor)

    def report(self, seconds: float) -> Report:
        """Everything found, as one frozen value."""
        checks = [*_coverage_checks(self.coverage), *self.problems]
        checks += [*self.whole.checks(), *self.halves.checks(), *self.ops.checks()]
        checks += self.recorded.checks()
        line = self.ops.first() or self.line or self.recorded.first()
        return Report(
            artefact=str(self.path),
            artefact_hash=self.subject.manifest.hash,
            numerics=self.subject.manifest.numerics,
            backend=self.backend.name,
            num_steps=len(self.scenario.steps),
            num_tokens=self.scenario.num_tokens,
            seconds=seconds,
            first_divergence=line,
            checks=tuple(checks),
        )


def _run(runner: Any, graph: str, inputs: Any, streams: Any) -> Any:
    if graph == MTP:
        return runner.mtp_step(inputs, streams)
    return runner.step(inputs, streams_in=streams)


def _with_rows(state: Tensor, slot: int, rows: Array) -> Tensor:
    made = state.clone()
    made[slot] = tensor_from_array(rows)
    return made


def _coverage_checks(coverage: Coverage) -> list[Check]:
    checks = []
    for covered in coverage.result():
        status = FAILED if covered.failed else SKIPPED if covered.not_applicable else PASSED
        checks.append(Check(COVERAGE, covered.item.name, status, covered.sentence()))
    return checks
