"""Every planted fault, and what verifies an artefact that carries one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ds4export.export import ExportOptions, export_checkpoint
from ds4export.parity.reference import open_reference_checkpoint, reference_model
from ds4export.parity.reference_run import GraphStep, reference_steps
from ds4export.parity.results import Report
from ds4export.parity.verify import Verification, VerifyOptions
from ds4export.report import Reporter
from tests.parity.fault import OFFICIAL, Fault
from tests.parity.faults_layers import LAYER_FAULTS
from tests.parity.faults_model import MODEL_FAULTS
from tests.parity.faults_official import OFFICIAL_FAULTS
from tests.parity.faults_state import STATE_FAULTS, WIRING_FAULTS
from tests.parity.plant import Plant

DATA = Path(__file__).parent.parent / "data"
FAULTS: tuple[Fault, ...] = (
    *MODEL_FAULTS,
    *LAYER_FAULTS,
    *STATE_FAULTS,
    *WIRING_FAULTS,
    *OFFICIAL_FAULTS,
)


class Bench:
    """Exports each sound artefact once and keeps the reference's steps: a fault costs only its own run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._artefacts: dict[str, Path] = {}
        self._steps: dict[str, list[GraphStep]] = {}
        self._count = 0
        self.last: Verification | None = None

    def artefact(self, set_name: str, numerics: str) -> Path:
        """A sound artefact of recorded data."""
        key = f"{set_name}-{numerics}"
        if key not in self._artefacts:
            options = ExportOptions(official=numerics == OFFICIAL)
            source, target = DATA / set_name / "checkpoint", self.folder / key
            with (self.folder / "export.log").open("a") as log:
                export_checkpoint(source, target, options, Reporter(stream=log))
            self._artefacts[key] = target
        return self._artefacts[key]

    def sound(self, fault: Fault) -> Path:
        """The artefact that the fault is planted in."""
        return self.artefact(fault.set_name, fault.numerics)

    def verify(self, fault: Fault, num_graphs: int | None = None) -> Report:
        """Plant the fault in a copy and verify that; `num_graphs`: only the first graphs of the scenario."""
        self._count += 1
        plant = Plant(self.sound(fault), self.folder / f"fault-{self._count}")
        fault.plant(plant)
        return self.report(fault, plant.save(), num_graphs)

    def report(self, fault: Fault, path: Path, num_graphs: int | None = None) -> Report:
        """Verify an artefact against the reference of the fault's checkpoint."""
        made = self.last = Verification(path, VerifyOptions(), num_floors=0)
        if fault.key not in self._steps:
            checkpoint = open_reference_checkpoint(made.artefact, None)
            model = reference_model(made.artefact, checkpoint, made.available)
            self._steps[fault.key] = list(reference_steps(model, made.scenario, with_floor=False))
        made.run_whole(self._steps[fault.key][:num_graphs])
        return replace(made.report(0.0), artefact=fault.name)
