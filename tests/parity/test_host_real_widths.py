"""One layer of each kind at Flash's real widths, and a decode step of Pro's CSA layer, on the plugin library's kernels.

Few experts and a small vocabulary, everything else as released. A late sequence with synthetic state, past the top-k
cut; every op by itself and both half layers, within the bounds that `verify` demands. Minutes a layer.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from ds4export.artefact import open_artefact_folder
from ds4export.checkpoint import PRESETS
from ds4export.checkpoint.synth import write_synthetic
from ds4export.errors import ToolchainError
from ds4export.export import ExportOptions, export_checkpoint
from ds4export.parity.backends import check_backend
from ds4export.parity.host_backend import NAME, HostBackend
from ds4export.parity.layer_run import LayerRun, layer_ops
from ds4export.parity.levels import Levels
from ds4export.parity.reference import open_reference_checkpoint
from ds4export.parity.results import COVERAGE, FAILED, Check
from ds4export.parity.scenario import Scenario, short_scenario
from ds4export.parity.subject import Subject
from ds4export.report import Reporter

pytestmark = pytest.mark.slow
RATIOS = {"window": 0, "csa": 4, "hca": 128}


@pytest.fixture(scope="module")
def slices(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of checkpoints and artefacts by preset, each made when first asked for."""
    try:
        check_backend(NAME)
    except ToolchainError as error:
        pytest.skip(f"{error.what}: {error.found}")
    return tmp_path_factory.mktemp("slices")


@pytest.mark.parametrize(
    ("preset", "kind", "chunk", "decode"),
    [
        ("flash-slice", "window", 8, 3),
        ("flash-slice", "csa", 8, 3),
        ("flash-slice", "hca", 8, 3),
        ("pro-slice", "csa", 0, 1),
    ],
)
def test_a_layer_at_real_widths(
    slices: Path, preset: str, kind: str, chunk: int, decode: int
) -> None:
    artefact = artefact_of(slices, preset)
    config = PRESETS[preset]
    layer = config.compress_ratios.index(RATIOS[kind])
    scenario = short_scenario(config, frozenset({RATIOS[kind]}), chunk=chunk, decode=decode)
    checks = checks_of(artefact, scenario, layer)
    for check in checks:
        print(
            f"{preset} {check.level} {check.name} {check.status} {check.error} of {check.bound} {check.detail}"
        )
    assert checks
    assert not [c for c in checks if c.status == FAILED]


def artefact_of(folder: Path, preset: str) -> Path:
    """The preset's slice in official numerics."""
    artefact = folder / f"{preset}-artefact"
    if not artefact.exists():
        write_synthetic(folder / preset, PRESETS[preset], seed=0)
        with (folder / "log").open("w") as log:
            options = ExportOptions(official=True)
            export_checkpoint(folder / preset, artefact, options, Reporter(stream=log))
    return artefact


def checks_of(path: Path, scenario: Scenario, layer: int) -> list[Check]:
    """What every op and both halves of the layer came to; a short scenario cannot cover everything, nor is it asked."""
    artefact = open_artefact_folder(path)
    subject = Subject(artefact)
    backend = HostBackend(subject)
    levels = Levels(subject, backend, layer_ops(subject, [layer]), num_floors=0)
    run = LayerRun(levels, open_reference_checkpoint(artefact, None), scenario, layer)
    for number in range(len(scenario.steps)):
        run.step(number)
    backend.close()
    return [c for c in levels.checks() if c.level != COVERAGE]
