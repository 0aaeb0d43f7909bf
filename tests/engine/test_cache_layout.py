"""Layouts of caches: the tables of an engine are those of its lowered graphs, and what cannot be packed is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from ds4export.artefact import open_artefact_folder
from ds4export.artefact.manifest import STATE, GraphInfo, TensorInfo
from ds4export.engine.cache_layout import (
    NATIVE,
    PACKED,
    check_cache,
    check_rows,
    packed_tensors,
    with_cache,
)
from ds4export.engine.plan import lower, read_graph
from ds4export.engine.profile import Sizes, StepShape, state_bytes
from ds4export.errors import ArtefactError, ExportError, RuntimeInputError
from ds4export.state import cache_kind
from tests.kit.artefacts import exported

SIZES = Sizes(max_context=1024, max_batch=3, steps={"decode": StepShape((1, 3, 3), (1, 1, 1))})


def signature(tensors: Any) -> dict[str, tuple[str, list[str]]]:
    return {t.name: (str(t.dtype), [str(d) for d in t.dims]) for t in tensors}


@pytest.mark.parametrize("cache", [NATIVE, PACKED])
@pytest.mark.parametrize("name", ["nano", "tiny-a", "tiny-c"])
def test_the_tables_are_those_of_the_lowered_graphs(name: str, cache: str) -> None:
    """What the engine's manifest says is what TensorRT is given: the graph finds its widths by another way."""
    artefact = open_artefact_folder(exported(name, official=True))
    tables = with_cache(artefact.manifest, cache)
    assert tables.cache == cache
    for graph, info in tables.graphs.items():
        graph_path = artefact.graph_path(graph)
        lowered: Any = lower(read_graph(graph_path), packed=cache == PACKED).graph
        for found, wanted in ((lowered.inputs, info.inputs), (lowered.outputs, info.outputs)):
            got = {v.name: (str(v.dtype), [str(d) for d in v.shape]) for v in found}
            assert got == signature(wanted)
        packed = {t.name for t in (*info.inputs, *info.outputs) if t.dtype == "INT8"}
        packed -= {t.name for t in artefact.manifest.graphs[graph].inputs if t.dtype == "INT8"}
        states = (t.name for t in (*info.inputs, *info.outputs) if t.kind == STATE)
        kept = {n for n in states if not n.removesuffix("_out").endswith("pending")}
        assert packed == (kept if cache == PACKED else set())


def test_the_bytes_of_nano() -> None:
    """Rows of 128: 64 codes, 64 roped dims of two bytes, a scale, up to a multiple of 8; keys of 128 at four bits."""
    manifest = open_artefact_folder(exported("nano", official=True)).manifest
    tables = with_cache(manifest, PACKED)
    widths = {
        t.name: t.dims[-1] for g in tables.graphs.values() for t in g.inputs if t.kind == STATE
    }
    assert widths["state.layers.1.window"] == widths["state.layers.1.entries"] == 200
    assert widths["state.layers.1.index_keys"] == 68
    native, packed = (state_bytes(m.graphs.values(), m.config, SIZES) for m in (manifest, tables))
    window, ratios = 33, (4, 128, 4)  # rows of a ring; layers with entries
    rows = 5 * window + sum(1024 // r + 1 for r in ratios)
    keys = 2 * (1024 // 4 + 1)
    assert native - packed == 3 * (rows * (256 - 200) + keys * (256 - 68))


def test_names() -> None:
    assert cache_kind("state.layers.1.window") == cache_kind("state.mtp.0.entries_out") == "kv"
    assert cache_kind("state.layers.1.index_keys_out") == "key"
    others = ("state.layers.1.index_pending", "window", "layers.1.window", "streams")
    assert {cache_kind(name) for name in others} == {None}


def test_an_unknown_layout_is_told_the_known_ones() -> None:
    check_cache(NATIVE)
    check_cache(PACKED)
    with pytest.raises(RuntimeInputError, match="unknown --cache") as caught:
        check_cache("fp8")
    assert (caught.value.found, caught.value.expected) == ("fp8", "native or packed")


def test_rows_of_a_width_that_cannot_be_packed_are_named() -> None:
    config = open_artefact_folder(exported("nano", official=True)).manifest.config
    ring = TensorInfo("state.layers.0.window", STATE, "BFLOAT16", ("S", "rows", 130))
    with pytest.raises(ExportError, match="kv rows of this width cannot be packed") as caught:
        packed_tensors(GraphInfo("main.onnx", (ring,), ()), config)
    assert caught.value.where == "state.layers.0.window"
    assert "130 wide" in caught.value.found


def test_rows_are_checked_without_graphs() -> None:
    """Of the kinds of layers that are there: only compressed sparse attention has index keys."""
    config = open_artefact_folder(exported("nano", official=True)).manifest.config
    check_rows(config, range(4), PACKED)
    odd = replace(config, index_head_dim=64)
    csa = config.compress_ratios.index(4)
    check_rows(odd, [csa], NATIVE)
    check_rows(odd, [i for i in range(4) if config.ratio(i) != 4], PACKED)
    with pytest.raises(ExportError, match="index keys of this width cannot be packed"):
        check_rows(odd, [csa], PACKED)
    with pytest.raises(ExportError, match="kv rows of this width cannot be packed"):
        check_rows(replace(config, head_dim=124, qk_rope_head_dim=60), [0], PACKED)


def test_packed_caches_are_not_unpacked() -> None:
    manifest = open_artefact_folder(exported("nano", official=True)).manifest
    packed = replace(manifest, cache=PACKED)
    assert with_cache(packed, PACKED) is packed
    with pytest.raises(ArtefactError, match="packed already") as caught:
        with_cache(packed, NATIVE)
    assert (caught.value.found, caught.value.expected) == (PACKED, NATIVE)
