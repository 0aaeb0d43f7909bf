"""Engines with the plugins that ship: the library of `make plugins`, built ahead of time for every target; none is run.

The library of shells shows the lowering; this shows that the real library's creators take every node of every kind of
layer, in both profiles, and that the engine's manifest names it as a library with kernels.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from ds4export.engine.build import BuildOptions, build_engine
from ds4export.engine.plugins import KERNELS, find_library, identify
from ds4export.engine.reader import check_library, open_engine
from ds4export.engine.tensorrt import RTX_TARGETS
from ds4export.errors import ToolchainError
from tests.engine.kit import RTX_MISSING, quiet
from tests.kit.artefacts import exported


@pytest.fixture(scope="module")
def library() -> Path:
    pytest.importorskip("tensorrt_rtx", reason=RTX_MISSING)
    try:
        return find_library()
    except ToolchainError as error:
        pytest.skip(f"{error.what}: `make plugins` builds it")


@pytest.mark.parametrize("cache", ["native", "packed"])
@pytest.mark.parametrize("name", ["tiny-a", "tiny-c", "nano"])
def test_a_plugin_with_a_kernel_for_every_node(library, tmp_path, name, cache):
    options = BuildOptions(cache=cache)
    build_engine(exported(name, official=True), tmp_path / "e", options, quiet())
    engine = open_engine(tmp_path / "e")
    manifest = engine.manifest
    assert manifest.plugins == identify(library)
    assert manifest.plugins.kind == KERNELS
    assert manifest.targets == RTX_TARGETS
    assert manifest.cache == cache
    check_library(engine, library)
    for graph in manifest.graphs.values():
        assert len(graph.profiles) == 2
        assert graph.plugin_records == 2 * sum(graph.nodes.values()) > 0
        plan = engine.read_plan(graph.plan.split(".")[0])
        print(f"{name} {graph.plan}: {graph.plugin_records} records, {len(plan):,} bytes, {cache}")
