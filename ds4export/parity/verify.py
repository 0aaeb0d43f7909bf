"""`verify`: one artefact, one scenario, every level; the result is a `Report`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ds4export.artefact import Artefact, open_artefact_folder
from ds4export.engine.cache_layout import NATIVE, PACKED, check_cache
from ds4export.errors import RuntimeInputError
from ds4export.parity.backends import DEFAULT, check_backend, open_backend
from ds4export.parity.layer_run import LayerRun, check_layers, layer_ops
from ds4export.parity.levels import Levels
from ds4export.parity.op_level import NUM_FLOORS
from ds4export.parity.recorded import Vectors, open_vectors, write_dump
from ds4export.parity.reference import open_reference_checkpoint, reference_model
from ds4export.parity.reference_run import GraphStep, reference_steps
from ds4export.parity.results import Check, Report
from ds4export.parity.scenario import make_scenario
from ds4export.parity.subject import MAIN, MTP, Subject
from ds4export.parity.vectors import VectorTally, check_vectors
from ds4export.parity.whole_run import WholeRun
from ds4export.report import Reporter, format_count


@dataclass(frozen=True)
class VerifyOptions:
    """What a user may choose.

    `layers`: only these main layers, one at a time, with seeded streams. `late`: where the late sequences of the
    scenario start; by default just past the top-k cut. `cache`: how the back end keeps its caches, NATIVE or PACKED.
    """

    backend: str = DEFAULT
    vectors: Path | None = None
    dump: Path | None = None
    layers: tuple[int, ...] | None = None
    checkpoint: Path | None = None
    seed: int = 0
    late: int | None = None
    cache: str = NATIVE


def verify_artefact(path: Path, options: VerifyOptions, reporter: Reporter) -> Report:
    """Verify an artefact against the PyTorch definition over its checkpoint.

    Raises:
        Ds4Error: the artefact, its checkpoint or the back end cannot be used. What diverges is in the report.
    """
    started = time.perf_counter()
    vectors = _checked(options)
    with reporter.stage("open") as stage:
        verification = Verification(path, options)
        stage.done(*verification.facts())
    with reporter.stage("scenario") as stage:
        verification.run(reporter)
        stage.done(*verification.scenario_facts())
    if vectors is not None:
        with reporter.stage("vectors") as stage:
            stage.done(*verification.compare_vectors(vectors))
    return verification.report(time.perf_counter() - started)


def _checked(options: VerifyOptions) -> Path | None:
    """Refuse options that do not go together, before any work; returns the folder of vectors."""
    check_cache(options.cache)
    check_backend(options.backend, options.cache)
    if options.dump is not None and options.vectors is None:
        raise RuntimeInputError(
            "--dump needs recorded inputs to start from", hint="add --vectors DIR"
        )
    if options.vectors is not None and options.layers is not None:
        raise RuntimeInputError("--vectors needs the whole model", hint="leave --layers out")
    return options.vectors


class Verification:
    """An open artefact, its reference, and what is found about it."""

    def __init__(self, path: Path, options: VerifyOptions, *, num_floors: int = NUM_FLOORS) -> None:
        self.path, self.options = path, options
        self.artefact: Artefact = open_artefact_folder(path, options.checkpoint)
        self.manifest = self.artefact.manifest
        self.available = range(*self.manifest.layers)
        if options.layers is not None:
            check_layers(path, options.layers, self.available)
        self.subject = Subject(self.artefact)
        self.backend = open_backend(options.backend, self.subject, options.cache)
        self.checkpoint = open_reference_checkpoint(self.artefact, options.checkpoint)
        scenario = make_scenario(
            self.manifest.config, self._ratios(), seed=options.seed, late=options.late
        )
        self.scenario = replace(scenario, packed=options.cache == PACKED)
        layers = options.layers
        ops = self.subject.ops if layers is None else layer_ops(self.subject, layers)
        self.levels = Levels(self.subject, self.backend, ops, num_floors)
        self.whole: WholeRun | None = None
        self.recorded = VectorTally()

    def _ratios(self) -> frozenset[int]:
        config, layers = self.manifest.config, self.options.layers
        ratios = [config.ratio(i) for i in (self.available if layers is None else layers)]
        if MTP in self.subject.graphs and layers is None:
            ratios.append(config.ratio(config.num_hidden_layers))
        return frozenset(ratios)

    def facts(self) -> Sequence[str]:
        """For the stage line."""
        nodes = sum(len(g.nodes) for g in self.subject.graphs.values())
        chosen = self.options.layers
        begin, end = self.manifest.layers
        layers = f"{begin}:{end}" if chosen is None else ",".join(map(str, chosen))
        return f"layers {layers}", f"{nodes} ops", self.manifest.numerics, self.backend.name

    def scenario_facts(self) -> Sequence[str]:
        """For the stage line."""
        scenario = self.scenario
        return format_count(len(scenario.steps), "step"), format_count(scenario.num_tokens, "token")

    def run(self, reporter: Reporter) -> None:
        """The scenario, at every level."""
        count = len(self.scenario.steps)
        if self.options.layers is None:
            model = reference_model(self.artefact, self.checkpoint, self.available)
            with reporter.progress("steps", count) as advance:
                self.run_whole(reference_steps(model, self.scenario), advance)
            return
        self._cover_steps()
        with reporter.progress("steps", count * len(self.options.layers)) as advance:
            for layer in self.options.layers:
                run = LayerRun(self.levels, self.checkpoint, self.scenario, layer)
                for number in range(count):
                    run.step(number)
                    advance(1)

    def run_whole(
        self, steps: Iterable[GraphStep], advance: Callable[[int], None] = lambda _: None
    ) -> None:
        """The whole artefact against steps of the reference, which may have been recorded before."""
        self._cover_steps()
        self.whole = WholeRun(self.levels, self.scenario)
        for step in steps:
            self.whole.check(step)
            advance(int(step.graph == MAIN))

    def _cover_steps(self) -> None:
        for step in self.scenario.steps:
            self.levels.coverage.step(step.inputs)

    def compare_vectors(self, folder: Path) -> Sequence[str]:
        """Compare with recorded vectors; returns the facts of the stage line."""
        official = self.manifest.official
        vectors: Vectors = open_vectors(folder, official=official)
        self.recorded = check_vectors(self.subject, self.backend, vectors)
        facts = [format_count(len(self.recorded.found), "kind")]
        if self.options.dump is not None:
            computed = self.recorded.computed
            path = write_dump(self.options.dump, official=official, arrays=computed)
            facts.append(f"{len(computed)} tensors in {path}")
        return facts

    def _first(self) -> str:
        """The first divergence: op by op first, since there all before it agrees exactly."""
        line = self.levels.first()
        if not line and self.whole is not None:
            line = self.whole.first()
        return line or self.recorded.first()

    def report(self, seconds: float) -> Report:
        """Everything found, as one frozen value."""
        whole: list[Check] = self.whole.checks() if self.whole is not None else []
        return Report(
            artefact=str(self.path),
            artefact_hash=self.manifest.hash,
            numerics=self.manifest.numerics,
            backend=self.backend.name,
            num_steps=len(self.scenario.steps),
            num_tokens=self.scenario.num_tokens,
            seconds=seconds,
            first_divergence=self._first(),
            checks=(*self.levels.checks(), *whole, *self.recorded.checks()),
        )
