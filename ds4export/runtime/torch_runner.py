"""The reference as a runner: the PyTorch model over the checkpoint, its state kept as it flows.

Owns nothing but the state between steps. Refuses nothing beyond what `StepInputs` checks; it is slow on purpose.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ds4export.model.attention import Step
from ds4export.model.transformer import Transformer
from ds4export.runtime.runner import Ints, Limits, StepInputs, StepResult
from ds4export.state import F32, layer_state


class TorchRunner:
    """A pool of slots over a `Transformer`; `state` maps `layers.{i}.{name}` to [S, rows, width].

    The model is functional: a step replaces the tensors of `state`, it never writes into them, so a caller may keep
    the state of before a step.
    """

    def __init__(
        self, model: Transformer, *, num_slots: int, max_context: int, fill: float = 0.0
    ) -> None:
        self.model = model
        self.limits = Limits(model.config.vocab_size, num_slots, max_context)
        self.state = _new_state(model, num_slots, max_context, fill)

    @property
    def has_mtp(self) -> bool:
        return len(self.model.mtp) > 0

    def step(
        self, inputs: StepInputs, *, want_logits: bool = True, streams_in: Any = None
    ) -> StepResult:
        """One step of the main model; `streams_in` where the range does not begin with layer 0."""
        model = self.model
        with torch.no_grad():
            x, new = model(_tensor(inputs.ids), _step(inputs), self.state, streams_in)
            is_last = model.layer_range.stop == model.config.num_hidden_layers
            logits = None
            if is_last and want_logits:
                logits = model.logits(x, _tensor(inputs.logit_rows), model.head.weight)
        self.state = self.state | new
        return StepResult(None if logits is None else logits.numpy(), x)

    def mtp_step(self, inputs: StepInputs, streams: Any) -> StepResult:
        """One step of MTP block 0, fed with the ids one position later."""
        model, block = self.model, self.model.mtp_block(0)
        with torch.no_grad():
            x, new = model.mtp_forward(0, _tensor(inputs.ids), streams, _step(inputs), self.state)
            logits = block.logits(x, _tensor(inputs.logit_rows), model.head.weight)
        self.state = self.state | new
        return StepResult(logits.numpy(), x)

    def close(self) -> None:
        """Let the state go."""
        self.state = {}


def _tensor(array: Ints) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))


def _step(inputs: StepInputs) -> Step:
    return Step(*(_tensor(a) for a in (inputs.slots, inputs.positions, inputs.num_new)))


def _new_state(
    model: Transformer, num_slots: int, max_context: int, fill: float
) -> dict[str, Tensor]:
    config = model.config
    layers = {f"layers.{i}": config.ratio(i) for i in model.layer_range}
    layers |= {f"mtp.{j}": config.ratio(config.num_hidden_layers + int(j)) for j in model.mtp}
    boundary = torch.bfloat16 if model.official else torch.float32
    return {
        f"{prefix}.{spec.name}": torch.full(
            (num_slots, spec.rows, spec.width),
            fill,
            dtype=torch.float32 if spec.dtype == F32 else boundary,
        )
        for prefix, ratio in layers.items()
        for spec in layer_state(config, ratio, max_context)
    }
