"""One layer of each kind at Pro's real widths (hidden 7168, 128 heads, 16 groups, index_topk 1024) and at Flash's.

Few experts and a small vocabulary, everything else as released. Positions lie where top-k cuts and rings have wrapped.
"""

from __future__ import annotations

import json
import subprocess
import sys

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


EXPORT = """
import resource, sys, time
from pathlib import Path
from ds4export.export import ExportOptions, export_checkpoint
from ds4export.report import Reporter
export_checkpoint(Path(sys.argv[1]), Path(sys.argv[2]), ExportOptions(), Reporter(num_stages=5))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""
LOAD = """
import json, sys
from ds4export.runtime import open_artefact

def private_bytes():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))

with open_artefact(sys.argv[1], num_slots=4, max_context=8192, threads=1) as model:
    caches = sum(a.nbytes for a in model.runner.state.values())
    print(json.dumps({"private": private_bytes(), "caches": caches}))
"""


def _python(script: str, *arguments: str) -> str:
    run = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_export_and_load_stay_small(slice_of, tmp_path):
    """Under 1.5 GB and 2 MB of graph; after load at most caches + 100 MB beyond the map.

    Measured: 0.37 GB, 0.44 MB, and 67 MB (Pro) or 78 MB (Flash) with caches of 15 and 27 MB.
    """
    path, _ = slice_of
    artefact = tmp_path / "artefact"
    peak = int(_python(EXPORT, str(path), str(artefact)))
    graphs = sum(f.stat().st_size for f in artefact.glob("*.onnx"))
    assert peak < 1.5e9
    assert graphs < 2e6
    loaded = json.loads(_python(LOAD, str(artefact)))
    print(f"{path.name}: export {peak / 1e6:.0f} MB, graphs {graphs / 1e3:.0f} kB, loaded {loaded}")
    assert loaded["private"] < loaded["caches"] + 100e6
