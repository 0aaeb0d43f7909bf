"""Packed caches on the roofline, against the specification's cost tables and by counting rows."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest

from ds4export.checkpoint.presets import FLASH, PRO
from ds4export.config import ModelConfig
from ds4export.errors import ExportError
from ds4export.ops import ALL_OPS
from ds4export.roofline import attention, page, predict
from ds4export.roofline.attention import Chunk
from ds4export.roofline.devices import DEVICES
from ds4export.roofline.kernel import Kernel
from ds4export.roofline.layouts import Layout
from ds4export.roofline.step import OpCall, state_bytes, step_ops
from ds4export.state import layer_state

H100 = DEVICES[0]
M = 1 << 20
MODELS = [pytest.param(FLASH, id="Flash"), pytest.param(PRO, id="Pro")]


def both(config: ModelConfig, chunk: Chunk) -> tuple[list[OpCall], list[OpCall]]:
    native, packed = (step_ops(config, chunk, H100, layout) for layout in Layout)
    return native, packed


def kernels_of(config: ModelConfig, op: str, chunk: Chunk) -> dict[str, Kernel]:
    calls = step_ops(config, chunk, H100, Layout.PACKED)
    return {k.name: k for k in next(call.kernels for call in calls if call.op == op)}


@pytest.mark.parametrize(
    ("config", "context", "megabytes"),
    [
        (FLASH, 4096, 11.3),
        (FLASH, 131072, 68.2),
        (FLASH, M, 480),
        (PRO, 4096, 25.2),
        (PRO, 131072, 107.9),
        (PRO, M, 706),
    ],
)
def test_cache_read_by_a_token_as_specified(
    config: ModelConfig, context: int, megabytes: float
) -> None:
    """Section 13: all layers' window rows, chosen or visible entries and index keys, the token's own row among them."""
    calls = step_ops(config, Chunk(1, 1, context), H100, Layout.PACKED)
    read = sum(
        call.count * k.state
        for call in calls
        if call.op.startswith(("attention", "indexer"))
        for k in call.kernels
    )
    assert read / 1e6 == pytest.approx(megabytes, rel=5e-3)


@pytest.mark.parametrize(
    ("config", "layout", "bytes_a_token"),
    [
        (FLASH, Layout.NATIVE, 6880),
        (FLASH, Layout.PACKED, 3514),
        (PRO, Layout.NATIVE, 9848),
        (PRO, Layout.PACKED, 5031),
    ],
)
def test_cache_held_as_specified(config: ModelConfig, layout: Layout, bytes_a_token: int) -> None:
    grown = state_bytes(config, M, layout) - state_bytes(config, M // 2, layout)
    assert grown / (M // 2) == pytest.approx(bytes_a_token, abs=0.5)


@pytest.mark.parametrize(("config", "megabytes"), [(FLASH, 15.4), (PRO, 23.3)])
def test_rings_of_a_sequence_as_specified(config: ModelConfig, megabytes: float) -> None:
    """Section 13: window and pending rows; this package keeps a row of scratch in every tensor besides."""
    scratch = sum(
        Layout.PACKED.state_bytes(config, replace(spec, rows=1))
        for layer in range(config.num_hidden_layers)
        for spec in layer_state(config, config.ratio(layer), 0)
    )
    rings = state_bytes(config, 0, Layout.PACKED) - scratch
    assert rings / 1e6 == pytest.approx(megabytes, rel=3e-3)


def test_rows_of_a_decode_step_at_a_million_tokens() -> None:
    chunk = Chunk(1, 1, M)
    attend = {op: kernels_of(FLASH, op, chunk) for op in ("attention_csa", "attention_hca")}
    assert attend["attention_csa"]["attend"].state == (127 + 512) * 584
    assert attend["attention_hca"]["attend"].state == (127 + 8192) * 584
    # The new row is read in bf16 and written packed; it is no state yet when it is attended to.
    append = attend["attention_csa"]["append"]
    assert (append.state, append.loaded) == (584, 1024 + 584)
    assert append.again == ((1024.0, 1024.0),)
    score = kernels_of(FLASH, "indexer_topk", chunk)["score"]
    assert score.state == 262_144 * 68
    assert score.loaded == score.blocks * 64 * 128 * 2 + 262_144 * 68  # a block reads the query
    read = 8 * 2 * 512 * 4 / 4  # 8 rows of u and s for a quarter of an entry
    for op, moved in (("compress_csa", read + 584 / 4), ("compress_index", read / 4 + 68 / 4)):
        pool = kernels_of(FLASH, op, chunk)["pool"]
        assert (pool.state, pool.loaded) == (moved, moved)


@pytest.mark.parametrize("start", [0, 40, 291, 5000])
def test_keys_of_a_chunk_lie_in_the_cache_or_in_the_chunk(start: int) -> None:
    """9 tokens after `start`: each window row counted by where it lies, entries always in the cache."""
    chunk, fresh, kept = Chunk(2, 9, start + 9), 0, 0
    for position in range(start, start + 9):
        window = range(max(0, position - 127), position + 1)
        fresh += sum(p >= start for p in window)
        kept += sum(p < start for p in window) + (position + 1) // 128
    assert attention.keys_of_queries(FLASH, 128, chunk).fresh == fresh
    attend = kernels_of(FLASH, "attention_hca", chunk)["attend"]
    assert (
        attend.blocks == 18 * 4
    )  # tiles of 16 heads, one split: each tile reads the list, q is read and o written
    assert attend.loaded == 2 * 18 * 64 * 1024 + 4 * 2 * (fresh * 1024 + kept * 584)


@pytest.mark.parametrize("config", MODELS)
def test_the_layout_changes_the_bytes_of_ops_with_a_cache_and_nothing_else(
    config: ModelConfig,
) -> None:
    for _, chunk in page.chunks():
        changed = set()
        for native, packed in zip(*both(config, chunk), strict=True):
            assert (native.op, native.what, native.count) == (packed.op, packed.what, packed.count)
            changed |= {native.op} if native.kernels != packed.kernels else set()
            for n, p in zip(native.kernels, packed.kernels, strict=True):
                assert p == replace(n, state=p.state, loaded=p.loaded, again=p.again)
                assert p.state <= n.state
        called = {call.op for call in step_ops(config, chunk, H100)}
        assert changed == {op for op in called if ALL_OPS[op].cache}, chunk


@pytest.mark.parametrize("config", MODELS)
def test_packed_caches_are_not_predicted_slower(config: ModelConfig) -> None:
    for device, (_, chunk) in product(DEVICES, page.chunks()):
        native, packed = (
            predict.times(step_ops(config, chunk, device, layout), device) for layout in Layout
        )
        assert packed.predicted <= native.predicted
        assert packed.bound <= native.bound
        args = (config, chunk.batch, chunk.context, device)
        assert predict.num_gpus(*args, Layout.PACKED) <= predict.num_gpus(*args)


def test_widths_without_a_packed_form_are_refused() -> None:
    with pytest.raises(ExportError, match="index keys of this width cannot be packed"):
        Layout.PACKED.key_bytes(replace(FLASH, index_head_dim=64))
    assert Layout.NATIVE.key_bytes(replace(FLASH, index_head_dim=64)) == 128
