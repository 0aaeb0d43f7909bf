"""One layer of each kind at Pro's real widths (hidden 7168, 128 heads, 16 groups, index_topk 1024) and at Flash's.

Few experts and a small vocabulary, everything else as released. Positions lie where top-k cuts and rings have wrapped.
"""

from __future__ import annotations

import pytest

from ds4export.checkpoint import PRESETS
from ds4export.checkpoint.synth import write_synthetic
from tests.kit.one_layer import run_layer

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=["pro-slice", "flash-slice"])
def slice_of(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("slices") / request.param
    write_synthetic(path, PRESETS[request.param], seed=0)
    return path, PRESETS[request.param]


@pytest.mark.parametrize("kind", ["window", "csa", "hca"])
def test_a_layer_at_real_widths(slice_of, kind, tmp_path):
    """Three tokens that complete a CSA and an HCA block; bound 1e-4 of the largest stream value."""
    path, config = slice_of
    ratio = {"window": 0, "csa": 4, "hca": 128}[kind]
    layer = config.compress_ratios.index(ratio)
    run = run_layer(path, tmp_path / "a", layer, position=64 * 128 - 2, tokens=3, context=16_384)
    scale = max(1.0, float(abs(run.want).max()))
    print(f"{path.name} {kind}: {run.worst():.2e} of {scale:.1f}")
    assert run.worst() < 1e-4 * scale
