"""The kernel library on the stand-in runtime, loaded into the process of the tests."""

from __future__ import annotations

import ctypes

import pytest

from ds4export.cuda.library import KernelLibrary
from ds4export.errors import ToolchainError
from ds4export.ptxhost.build import RUNTIME
from ds4export.ptxhost.toolchain import find_toolchain
from tests.cuda.stand_in import StandIn, build_stand_in

OPS = ("embed", "hc_post", "rms_norm")


@pytest.fixture(scope="session")
def stand_in() -> StandIn:
    try:
        find_toolchain()
    except ToolchainError as error:
        pytest.skip(error.what)
    return build_stand_in(OPS)


@pytest.fixture(scope="session")
def library(stand_in: StandIn) -> KernelLibrary:
    # The loader takes a runtime of that name which is there already: no LD_LIBRARY_PATH is needed.
    ctypes.CDLL(str(stand_in.runtime_folder / RUNTIME), mode=ctypes.RTLD_GLOBAL)
    return KernelLibrary(stand_in.build.library)
