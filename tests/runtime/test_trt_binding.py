"""Plans of bindings, memory and pieces: pure, so every case is a table."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from math import prod
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ds4export.artefact import open_artefact_folder
from ds4export.artefact.manifest import STATE, WEIGHT, GraphInfo, TensorInfo
from ds4export.engine.cache_layout import PACKED, with_cache
from ds4export.engine.profile import Sizes, profiles_of, sizes_of_artefact, state_bytes
from ds4export.errors import ArtefactError, CapacityError
from ds4export.runtime.device_memory import MemoryPlan, check_memory
from ds4export.runtime.kv_cache import allocate_state, state_specs
from ds4export.runtime.runner import StepInputs
from ds4export.runtime.step_cut import ProfileRange, choose_profile, cut_step, profile_ranges
from ds4export.runtime.trt_binding import (
    ALIGNMENT,
    IO,
    STATES,
    WEIGHTS,
    PlanShape,
    check_pool,
    memory_of,
    plan_bindings,
)
from tests.kit.artefacts import exported
from tests.runtime.trt_kit import CONTEXT, SLOTS, STEPS


def shapes_of(name: str, sizes: Sizes | None = None) -> tuple[dict[str, PlanShape], dict[str, Any]]:
    manifest = open_artefact_folder(exported(name, official=True)).manifest
    sizes = sizes or Sizes(CONTEXT, SLOTS, STEPS)
    plans = {
        n: PlanShape(g, profiles_of(g, manifest.config, sizes)) for n, g in manifest.graphs.items()
    }
    specs = state_specs(manifest, sizes.max_context)
    return plans, {n: (sizes.max_batch, s.rows, s.width) for n, s in specs.items()}


def test_every_tensor_has_a_place_and_no_two_overlap() -> None:
    plans, states = shapes_of("nano")
    made = plan_bindings(plans, states)
    for graph, plan in plans.items():
        names = {t.name for t in (*plan.tensors.inputs, *plan.tensors.outputs)}
        assert set(made.bound[graph]) == names
    for block in (WEIGHTS, STATES, IO):
        placed = sorted(
            (r for r in made.regions.values() if r.block == block), key=lambda r: r.offset
        )
        assert all(r.offset % 256 == 0 for r in placed)  # what TensorRT asks of every address
        assert all(a.offset + a.num_bytes <= b.offset for a, b in pairwise(placed))


def test_a_cache_goes_out_where_it_came_in_and_weights_are_shared() -> None:
    plans, states = shapes_of("nano")
    made = plan_bindings(plans, states)
    for graph, plan in plans.items():
        for tensor in plan.tensors.outputs:
            if tensor.kind == STATE:
                source = tensor.name.removesuffix("_out")
                assert made.bound[graph][tensor.name] == made.bound[graph][source] == source
    shared = {t.name for t in plans["main"].tensors.inputs if t.kind == WEIGHT}
    shared &= {t.name for t in plans["mtp"].tensors.inputs}
    assert shared  # the embedding at least
    assert made.bound["main"]["streams"] == made.bound["mtp"]["streams"] == "streams"
    assert made.bound["main"]["slots"] != made.bound["mtp"]["slots"]


def test_bytes_are_counted_from_the_shapes() -> None:
    manifest = open_artefact_folder(exported("nano", official=True)).manifest
    sizes = sizes_of_artefact(manifest)
    plans, states = shapes_of("nano", sizes)
    made = plan_bindings(plans, states)
    by_block = {
        block: sum(r.num_bytes for r in made.regions.values() if r.block == block)
        for block in (WEIGHTS, STATES)
    }
    names = {t.name for p in plans.values() for t in p.tensors.inputs if t.kind == WEIGHT}
    assert by_block[WEIGHTS] == sum(manifest.weights[n].nbytes for n in names)
    assert by_block[STATES] == state_bytes(manifest.graphs.values(), manifest.config, sizes)
    streams = 4 * 512 * 4 * 128 * 2
    assert made.regions["streams"].num_bytes == streams
    assert made.regions["main/logits"].num_bytes == 4 * manifest.config.vocab_size * 4
    assert made.regions["main/ids"].num_bytes == 4 * 512 * 8
    memory = memory_of(made)
    assert by_block[WEIGHTS] <= memory.weights < by_block[WEIGHTS] + ALIGNMENT * len(names)
    assert memory.total == memory.weights + memory.state + memory.io


def test_packed_caches_are_counted_and_begin_as_they_say() -> None:
    """The layout, the sum of the engine's manifest and the pool on the host have the same bytes."""
    native = open_artefact_folder(exported("nano", official=True)).manifest
    manifest, sizes = with_cache(native, PACKED), sizes_of_artefact(native)
    plans = {
        n: PlanShape(g, profiles_of(g, manifest.config, sizes)) for n, g in manifest.graphs.items()
    }
    specs = state_specs(manifest, sizes.max_context)
    shapes = {n: (sizes.max_batch, s.rows, s.width) for n, s in specs.items()}
    made = plan_bindings(plans, shapes)
    placed = sum(r.num_bytes for r in made.regions.values() if r.block == STATES)
    assert placed == state_bytes(manifest.graphs.values(), manifest.config, sizes)
    assert placed < state_bytes(native.graphs.values(), native.config, sizes)
    zeros, unset = (
        allocate_state(manifest, sizes.max_batch, sizes.max_context, fill=f) for f in (0.0, np.nan)
    )
    assert placed == sum(rows.nbytes for rows in zeros.values())
    for name, rows in unset.items():
        assert rows.dtype == (np.float32 if name.endswith("pending") else np.int8)
        assert not zeros[name].any()
        assert (
            (rows.view(np.uint8) == 0xFF).all() if rows.dtype == np.int8 else np.isnan(rows).all()
        )
    with pytest.raises(ArtefactError, match="not that of its config") as caught:
        state_specs(replace(native, cache=PACKED), sizes.max_context)
    assert "BFLOAT16 of width 128" in caught.value.found
    assert caught.value.expected == "INT8 of width 200"


def edited(plans: dict[str, PlanShape], change: Any) -> dict[str, PlanShape]:
    graph = plans["main"].tensors
    inputs, outputs = (tuple(map(change, side)) for side in (graph.inputs, graph.outputs))
    tensors = GraphInfo(graph.file, inputs, outputs)
    return {"main": PlanShape(tensors, plans["main"].profiles)}


def unknown_dim(t: TensorInfo) -> TensorInfo:
    return replace(t, dims=("B", "X", 1024)) if t.name == "logits" else t


def symbolic_weight(t: TensorInfo) -> TensorInfo:
    return replace(t, dims=("B", 128)) if t.name == "embed.weight" else t


def other_dtype(t: TensorInfo) -> TensorInfo:
    return replace(t, dtype="FLOAT") if t.name == "state.layers.0.window" else t


def foreign_state(t: TensorInfo) -> TensorInfo:
    return replace(t, name="state.layers.9.window") if t.name == "state.layers.0.window" else t


@pytest.mark.parametrize(
    ("change", "what", "found"),
    [
        (unknown_dim, "`logits` of the engine cannot be bound", "'X', 1024]"),
        (symbolic_weight, "`embed.weight` of the engine cannot be bound", "dimensions ['B', 128]"),
        (other_dtype, "`state.layers.0.window` stands for two kinds of bytes", "BFLOAT16"),
        (foreign_state, "`state.layers.9.window` of the engine cannot be bound", "a cache"),
    ],
)
def test_what_cannot_be_bound(change: Any, what: str, found: str) -> None:
    plans, states = shapes_of("nano")
    with pytest.raises(ArtefactError, match=what.replace("[", r"\[")) as caught:
        plan_bindings(edited(plans, change), states)
    assert found in caught.value.found
    assert caught.value.where == "graph `main`"


def test_a_device_that_is_too_small_is_told_both_numbers() -> None:
    memory = MemoryPlan(70_000_000_000, 2_000_000_000, 100_000_000).with_activations(900_000_000)
    check_memory(memory, 73_000_000_000, 80_000_000_000, "here")
    with pytest.raises(CapacityError, match="do not fit into the GPU's memory") as caught:
        check_memory(memory, 72_999_999_999, 80_000_000_000, "here")
    assert caught.value.found == "73.0 GB free of 80.0 GB"
    assert caught.value.expected == (
        "at least 73.0 GB: weights 70.0 GB, state 2.0 GB, io 100.0 MB, activations 900.0 MB"
    )


def test_a_pool_larger_than_the_engine() -> None:
    check_pool(4, 100, 4, 100, "here")
    with pytest.raises(CapacityError, match="built for a smaller num_slots") as caught:
        check_pool(5, 100, 4, 100, "here")
    assert (caught.value.found, caught.value.expected) == ("5", "at most 4")
    with pytest.raises(CapacityError, match="built for a smaller max_context"):
        check_pool(4, 101, 4, 100, "here")


DECODE = ProfileRange("decode", 0, (1, 3), (1, 1), (1, 1))
PREFILL = ProfileRange("prefill", 1, (1, 2), (1, 6), (1, 1))
WIDE = ProfileRange("wide", 2, (1, 4), (1, 40), (1, 3))


def test_ranges_are_read_from_the_profiles() -> None:
    plans, _ = shapes_of("nano")
    for plan in plans.values():
        assert profile_ranges(plan.tensors, plan.profiles) == [DECODE, PREFILL]


def test_a_step_takes_the_profile_with_the_fewest_tokens() -> None:
    piece = cut_step(step(2, 1, [[0], [0]]), [PREFILL, DECODE, WIDE])[0]
    assert choose_profile([PREFILL, DECODE, WIDE], piece, "here") == DECODE
    piece = cut_step(step(2, 4, [[3], [0]]), [DECODE, WIDE, PREFILL])[0]
    assert choose_profile([DECODE, WIDE, PREFILL], piece, "here") == PREFILL
    with pytest.raises(CapacityError, match="built for no step like this"):
        choose_profile([DECODE], piece, "here")


def step(batch: int, tokens: int, rows: Any, num_new: Any = None) -> StepInputs:
    ids = np.arange(batch * tokens).reshape(batch, tokens)
    new = np.full(batch, tokens) if num_new is None else np.asarray(num_new)
    slots, positions = np.arange(batch), np.arange(batch) * 100
    return StepInputs(ids, slots, positions, new, np.asarray(rows))


@st.composite
def steps(draw: st.DrawFn) -> StepInputs:
    batch, tokens = draw(st.integers(1, 5)), draw(st.integers(1, 50))
    columns = draw(st.integers(1, 7))
    table = st.lists(st.integers(-1, tokens - 1), min_size=columns, max_size=columns)
    rows = draw(st.lists(table, min_size=batch, max_size=batch))
    new = draw(st.lists(st.integers(0, tokens), min_size=batch, max_size=batch))
    return step(batch, tokens, rows, new)


@given(whole=steps(), profiles=st.sampled_from([[DECODE, PREFILL], [DECODE], [WIDE, DECODE]]))
def test_pieces_are_the_step(whole: StepInputs, profiles: list[ProfileRange]) -> None:
    """Every token once and in order, at its position; every wanted row once; every piece has a profile."""
    pieces = cut_step(whole, profiles)
    seen = np.zeros(whole.ids.shape, int)
    wanted: dict[tuple[int, int], int] = {}
    ends = whole.positions.copy()
    for piece in pieces:
        choose_profile(profiles, piece, "here")
        np.testing.assert_array_equal(piece.inputs.ids, whole.ids[piece.rows, piece.tokens])
        np.testing.assert_array_equal(piece.inputs.slots, whole.slots[piece.rows])
        seen[piece.rows, piece.tokens] += 1
        np.testing.assert_array_equal(piece.inputs.positions, ends[piece.rows])
        ends[piece.rows] += piece.inputs.num_new
        for (b, r), (row, column) in zip(piece.took, piece.puts, strict=True):
            inside = int(piece.inputs.logit_rows[b, r])
            token = piece.tokens.start + inside if inside >= 0 else -1
            assert (row, column) not in wanted
            wanted[int(row), int(column)] = token
            assert piece.rows.start + b == row
    assert (seen == 1).all()
    np.testing.assert_array_equal(ends, whole.positions + whole.num_new)
    for (row, column), token in np.ndenumerate(whole.logit_rows):
        if token >= 0:
            assert wanted[row, column] == token


def test_a_step_that_fits_is_not_touched() -> None:
    inputs = step(2, 6, [[5], [-1]])
    (piece,) = cut_step(inputs, [DECODE, PREFILL])
    assert piece.inputs is inputs
    assert prod(piece.sizes()) == 12


def test_a_step_without_rows_is_cut_by_tokens_alone() -> None:
    sizes = [p.sizes() for p in cut_step(step(3, 15, [[-1]] * 3), [DECODE, PREFILL])]
    assert sizes == [(2, 6, 1), (2, 6, 1), (2, 3, 1), (1, 6, 1), (1, 6, 1), (1, 3, 1)]
