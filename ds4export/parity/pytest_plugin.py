"""The options of the parity suite, as a pytest plugin: `pytest --pyargs ds4export.parity --artefact PATH`.

Owns the options only, so that installing this package changes nothing for other suites. Imports nothing of ours.
"""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """The options of `ds4export verify` that make sense here."""
    group = parser.getgroup("ds4export parity")
    group.addoption("--artefact", metavar="PATH", help="folder written by `ds4export export`")
    group.addoption(
        "--backend", metavar="NAME", default="onnxruntime", help="what runs the artefact"
    )
    group.addoption("--vectors", metavar="DIR", help="recorded vectors to compare with as well")
    group.addoption("--checkpoint", metavar="DIR", help="where the checkpoint is, if it has moved")
