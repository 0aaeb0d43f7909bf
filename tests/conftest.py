"""What every test gets: a seed of its own, the recorded data, one torch thread, no NO_COLOR."""

from __future__ import annotations

import hashlib
import random
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings

# A failing example must fail again on the next machine; time limits only measure how busy it is.
settings.register_profile("ds4export", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("ds4export")

DATA_PATH = Path(__file__).parent / "data"


def seed_of(test_id: str) -> int:
    """A seed that depends on the name of the test and on nothing else."""
    return int.from_bytes(hashlib.sha256(test_id.encode()).digest()[:4], "little")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what this machine cannot run, with the reason, when a marker expression asks for it."""
    missing = {
        "gpu": "" if shutil.which("nvidia-smi") else "needs an NVIDIA GPU with its driver",
        "peers": "" if find_spec("transformers") else "needs transformers (extra `dev`)",
    }
    for item in items:
        for marker, reason in missing.items():
            if reason and item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True)
def _reproducible(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    seed = seed_of(request.node.nodeid)
    random.seed(seed)
    np.random.seed(seed)
    monkeypatch.delenv("NO_COLOR", raising=False)
    # torch costs a second to import: a test that does not use it does not pay.
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.manual_seed(seed)
        torch.set_num_threads(1)


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """The seed of this test."""
    return seed_of(request.node.nodeid)


@pytest.fixture
def rng(seed: int) -> np.random.Generator:
    """A generator of this test's own."""
    return np.random.default_rng(seed)


@pytest.fixture(scope="session")
def data() -> Path:
    """The recorded checkpoints and golden outputs: tests/data."""
    return DATA_PATH
