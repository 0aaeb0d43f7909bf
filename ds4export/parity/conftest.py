"""Fixtures of the parity suite: `pytest --pyargs ds4export.parity --artefact PATH --backend NAME`.

The options stand in `pytest_plugin`. Owns nothing of the comparison: one verification runs on first use, and every
test looks at its part of the report.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from ds4export.parity.results import Report

NEEDED = "needs --artefact PATH"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test per coverage item, half layer and op of the artefact."""
    kinds = [k for k in ("coverage_item", "half_path", "op_path") if k in metafunc.fixturenames]
    for kind in kinds:
        names = _names(metafunc.config, kind)
        skip = [pytest.param("", marks=pytest.mark.skip(reason=NEEDED), id="no artefact")]
        metafunc.parametrize(kind, names or skip)


def _names(config: pytest.Config, kind: str) -> list[str]:
    from ds4export.artefact import open_artefact_folder
    from ds4export.parity.coverage import ITEMS
    from ds4export.parity.subject import Subject

    path = config.getoption("--artefact", None)
    if not path:
        return []
    if kind == "coverage_item":
        return [item.name for item in ITEMS]
    artefact = open_artefact_folder(Path(path), _path(config, "--checkpoint"))
    graphs = Subject(artefact).graphs.values()
    if kind == "half_path":
        return [half.path for graph in graphs for half in graph.halves]
    return [node.path for graph in graphs for node in graph.nodes]


def _path(config: pytest.Config, option: str) -> Path | None:
    value = config.getoption(option, None)
    return Path(value) if value else None


@pytest.fixture(scope="session")
def report(request: pytest.FixtureRequest) -> Report:
    """The verification of the artefact, run once."""
    from ds4export.parity.verify import VerifyOptions, verify_artefact
    from ds4export.report import Reporter

    config = request.config
    path = config.getoption("--artefact", None)
    if not path:
        pytest.skip(NEEDED)
    options = VerifyOptions(
        backend=config.getoption("--backend"),
        vectors=_path(config, "--vectors"),
        checkpoint=_path(config, "--checkpoint"),
    )
    return verify_artefact(Path(path), options, Reporter(num_stages=3 if options.vectors else 2))
