"""What tests of the plugin library need; a test skips where it was not built, or where a tool is missing."""

from __future__ import annotations

from pathlib import Path

import pytest

from ds4export.errors import ToolchainError
from ds4export.ptxhost.toolchain import Toolchain, find_toolchain
from tests.plugins.host import library_path


@pytest.fixture(scope="session")
def library() -> Path:
    path = library_path()
    if not path:
        pytest.skip("the plugin library is not built: make plugins")
    return path


@pytest.fixture(scope="session")
def tools() -> Toolchain:
    try:
        return find_toolchain()
    except ToolchainError as error:
        pytest.skip(error.what)
