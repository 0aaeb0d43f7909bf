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
from tests.parity.faults_model import MODEL_FAULTS
from tests.parity.faults_official import OFFICIAL_FAULTS
from tests.parity.faults_state import STATE_FAULTS, WIRING_FAULTS
from tests.parity.plant import Plant

DATA = Path(__file__).parent.parent / "data"
FAULTS: tuple[Fault, ...] = (*MODEL_FAULTS, *STATE_FAULTS, *WIRING_FAULTS, *OFFICIAL_FAULTS)


class Bench:
    """Exports each sound artefact once and keeps the reference's steps: a fault costs only its own run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._artefacts: dict[str, Path] = {}
        self._steps: dict[str, list[GraphStep]] = {}
        self._count = 0

    def sound(self, fault: Fault) -> Path:
        """The artefact that the fault is planted in."""
        if fault.key not in self._artefacts:
            target = self.folder / fault.key.replace(" ", "-")
            source = DATA / fault.set_name / "checkpoint"
            options = ExportOptions(official=fault.numerics == OFFICIAL)
            with (self.folder / "export.log").open("a") as log:
                export_checkpoint(source, target, options, Reporter(stream=log))
            self._artefacts[fault.key] = target
        return self._artefacts[fault.key]

    def verify(self, fault: Fault) -> Report:
        """Plant the fault in a copy and verify that."""
        self._count += 1
        plant = Plant(self.sound(fault), self.folder / f"fault-{self._count}")
        fault.plant(plant)
        return self.report(fault, plant.save())

    def report(self, fault: Fault, path: Path) -> Report:
        """Verify an artefact against the reference of the fault's checkpoint."""
        made = Verification(path, VerifyOptions(), num_floors=0)
        if fault.key not in self._steps:
            checkpoint = open_reference_checkpoint(made.artefact, None)
            model = reference_model(made.artefact, checkpoint, made.available)
            self._steps[fault.key] = list(reference_steps(model, made.scenario, with_floor=False))
        made.run_whole(self._steps[fault.key])
        return replace(made.report(0.0), artefact=fault.name)
