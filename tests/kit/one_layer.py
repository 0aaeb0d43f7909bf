"""One layer of an exported range against the reference, from synthetic streams and caches."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
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


@dataclass(frozen=True)
class LayerRun:
    """Streams [1, T, N, D] of graph and reference, and their state, without scratch rows."""

    got: np.ndarray
    want: np.ndarray
    got_state: dict[str, np.ndarray]
    want_state: dict[str, np.ndarray]

    def worst(self) -> float:
        """The largest absolute difference of streams and state."""
        pairs = [
            (self.got, self.want),
            *((self.got_state[k], v) for k, v in self.want_state.items()),
        ]
        assert all(np.isfinite(a).all() for a, _ in pairs)
        return max(float(np.abs(a - b).max()) for a, b in pairs)


def run_layer(
    source: Path, folder: Path, layer: int, *, position: int, tokens: int, context: int
) -> LayerRun:
    """float32 numerics: `tokens` tokens from `position` on, caches filled with values of the right size."""
    layers = range(layer, layer + 1)
    options = ExportOptions(official=False, layers=layers, max_context=context)
    export_checkpoint(source, folder, options, Reporter(num_stages=5))
    artefact = open_artefact_folder(folder)
    config = artefact.manifest.config
    runner = OnnxRunner(artefact, num_slots=1, max_context=context, threads=1)
    rng = np.random.default_rng(layer)
    for array in runner.state.values():
        array[:] = rng.standard_normal(array.shape, np.float32)
        array[:, -1] = np.nan  # scratch rows are never read
    state = {k.removeprefix("state."): torch.from_numpy(v.copy()) for k, v in runner.state.items()}
    x = rng.standard_normal((1, tokens, config.hc_mult, config.hidden_size), np.float32)
    ids = rng.integers(0, config.vocab_size, (1, tokens))
    with open_checkpoint(source) as checkpoint, torch.no_grad():
        model = build_model(checkpoint, official=False, layers=layers, with_mtp=False)
        step = Step(torch.tensor([0]), torch.tensor([position]), torch.tensor([tokens]))
        streams = None if layer == 0 else torch.from_numpy(x)
        want, new = model(torch.from_numpy(ids), step, state, streams)
    inputs = StepInputs.checked(runner.limits, ids, slots=[0], positions=[position])
    result = runner.step(inputs, streams_in=None if layer == 0 else ort_value(x))
    got_state = {k: v[:, :-1] for k, v in runner.state.items()}
    want_state = {f"state.{k}": v.numpy()[:, :-1] for k, v in new.items()}
    return LayerRun(numpy_value(result.streams), want.numpy(), got_state, want_state)
