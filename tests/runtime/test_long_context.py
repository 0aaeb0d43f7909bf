"""A decode at the last position of a million-token context, one layer of each kind, against the reference."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ds4export.artefact import open_artefact_folder
from ds4export.checkpoint import open_checkpoint
from ds4export.export import ExportOptions, export_checkpoint
from ds4export.model import build_model
from ds4export.model.attention import Step
from ds4export.report import Reporter
from ds4export.runtime.onnx_runner import OnnxRunner
from ds4export.runtime.ort_values import numpy_value, ort_value
from ds4export.runtime.runner import StepInputs

CONTEXT = 1_048_576
LAST = CONTEXT - 1
# tiny-a's layers: window, CSA, HCA
KINDS = {"window": 0, "csa": 1, "hca": 2}


@pytest.mark.parametrize("kind", KINDS)
def test_decode_at_the_last_position(kind, data, tmp_path):
    """float32, caches filled with values of the right size; bound 1e-4 absolute (the streams have deviation 1)."""
    layer = KINDS[kind]
    source = data / "tiny-a" / "checkpoint"
    options = ExportOptions(official=False, layers=range(layer, layer + 1), max_context=CONTEXT)
    export_checkpoint(source, tmp_path / "artefact", options, Reporter(num_stages=5))
    artefact = open_artefact_folder(tmp_path / "artefact")
    runner = OnnxRunner(artefact, num_slots=1, max_context=CONTEXT, threads=1)
    rng = np.random.default_rng(layer)
    for array in runner.state.values():
        array[:] = rng.standard_normal((1, *array.shape[1:]), np.float32)
        array[:, -1] = np.nan  # scratch rows are never read
    with open_checkpoint(source) as checkpoint, torch.no_grad():
        model = build_model(checkpoint, official=False, layers=range(layer, layer + 1))
        state = {k.removeprefix("state."): torch.from_numpy(v.copy()) for k, v in runner.state.items()}
        x = torch.from_numpy(rng.standard_normal((1, 1, 4, 256), np.float32))
        ids, one = torch.tensor([[7]]), torch.tensor([1])
        step = Step(torch.tensor([0]), torch.tensor([LAST]), one)
        streams_in = None if layer == 0 else x
        want, new = model(ids, step, state, streams_in)
    inputs = StepInputs.checked(runner.limits, ids.numpy(), slots=[0], positions=[LAST])
    feed = None if layer == 0 else ort_value(x.numpy())
    got = numpy_value(runner.step(inputs, streams_in=feed).streams)
    assert np.isfinite(got).all()
    assert np.abs(got - want.numpy()).max() < 1e-4
    for name, after in new.items():
        found = runner.state[f"state.{name}"][:, :-1]
        np.testing.assert_allclose(found, after.numpy()[:, :-1], atol=1e-4, rtol=0)
