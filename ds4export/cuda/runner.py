"""The model on a device: every weight, table and state tensor there, every op by its kernel.

Owns the move and the state. State is updated in place: what a step appends is written into the buffers that the next
one reads, as a TensorRT runtime does it.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ds4export.cuda.register import Caller, registered
from ds4export.model.attention import Step
from ds4export.model.transformer import Transformer
from ds4export.runtime.runner import Ints, StepInputs, StepResult
from ds4export.runtime.torch_runner import TorchRunner


def model_on(model: Transformer, device: str) -> Transformer:
    """A copy of the model with its weights, rotary frequencies and expert order on the device, each aligned."""
    moved = copy.deepcopy(model).to(device)
    moved.freqs = {ratio: freqs.to(device) for ratio, freqs in model.freqs.items()}
    moved.expert_rows = model.expert_rows.to(device)
    return moved


class KernelRunner(TorchRunner):
    """The back end `torch-cuda`: see `Runner`. `model` is in official numerics and on the device, see `model_on`.

    A step's `streams` stay on the device. `fill` is what the pool holds before, NaN in tests.
    """

    def __init__(
        self,
        model: Transformer,
        caller: Caller,
        *,
        num_slots: int,
        max_context: int,
        fill: float = 0.0,
    ) -> None:
        assert model.official, "kernels compute official numerics"
        super().__init__(model, num_slots=num_slots, max_context=max_context, fill=fill)
        self.caller = replace(caller, in_place=True)
        self.device = model.expert_rows.device.type
        self.state = {name: tensor.to(self.device) for name, tensor in self.state.items()}

    def step(
        self, inputs: StepInputs, *, want_logits: bool = True, streams_in: Any = None
    ) -> StepResult:
        """One step of the main model; `streams_in` where the range does not begin with layer 0."""
        model = self.model
        with torch.no_grad(), registered(self.caller, self.device):
            x, new = model(self._moved(inputs.ids), self._step(inputs), self.state, streams_in)
            self.state = self.state | new
            is_last = model.layer_range.stop == model.config.num_hidden_layers
            if not is_last or not want_logits:
                return StepResult(None, x)
            logits = model.logits(x, self._moved(inputs.logit_rows), model.head.weight)
            return StepResult(logits.cpu().numpy(), x)

    def mtp_step(self, inputs: StepInputs, streams: Any) -> StepResult:
        """One step of MTP block 0, fed with the ids one position later."""
        model, block = self.model, self.model.mtp_block(0)
        with torch.no_grad(), registered(self.caller, self.device):
            ids = self._moved(inputs.ids)
            x, new = model.mtp_forward(0, ids, streams, self._step(inputs), self.state)
            self.state = self.state | new
            logits = block.logits(x, self._moved(inputs.logit_rows), model.head.weight)
            return StepResult(logits.cpu().numpy(), x)

    def _moved(self, array: Ints) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)

    def _step(self, inputs: StepInputs) -> Step:
        return Step(*map(self._moved, (inputs.slots, inputs.positions, inputs.num_new)))
