"""One bench for all tests of this folder: exports and reference runs are made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.parity.faults import Bench


@pytest.fixture(scope="session")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """Sound artefacts and the reference's steps over them."""
    return Bench(tmp_path_factory.mktemp("parity"))


@pytest.fixture(scope="session")
def float32_artefact(bench: Bench) -> Path:
    """tiny-a in float32."""
    return bench.artefact("tiny-a", "float32")


@pytest.fixture(scope="session")
def official_artefact(bench: Bench) -> Path:
    """tiny-base in official numerics: three layers, one of each kind."""
    return bench.artefact("tiny-base", "official")


@pytest.fixture(scope="session")
def small_artefact(bench: Bench) -> Path:
    """tiny-base in float32: FP8 experts, MTP, three layers."""
    return bench.artefact("tiny-base", "float32")
