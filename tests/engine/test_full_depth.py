"""The whole depth of the released models, from their configs: weights outside, plugins shells."""

from __future__ import annotations

import pytest

from ds4export.checkpoint.presets import FLASH, PRO
from ds4export.engine.full_depth import build_full_depth
from ds4export.engine.tensorrt import RTX, open_flavour
from tests.engine.kit import RTX_MISSING, quiet, shells

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(("config", "nodes"), [(FLASH, 880), (PRO, 1251)], ids=["flash", "pro"])
def test_builds_within_a_minute(config, nodes):
    pytest.importorskip("tensorrt_rtx", reason=RTX_MISSING)
    full = build_full_depth(config, shells(), open_flavour(RTX), ("SM120",), quiet())
    main = full.plans["main"]
    assert sum(main.nodes.values()) == nodes
    assert main.plugin_records == 2 * nodes  # decode and prefill
    assert main.nodes["moe"] == config.num_hidden_layers
    assert main.seconds < 60
    assert len(main.packed) < 5_000_000
    assert main.num_inputs < 4_000
    print(
        f"{len(main.content):,} bytes, {len(main.packed):,} stored, {main.num_inputs:,} inputs, {main.seconds:.1f} s"
    )
