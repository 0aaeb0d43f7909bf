"""Golden vectors of tests/data, step by step, as torch tensors. Keys and meaning: tests/data/README.md."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from itertools import count
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

DATA = Path(__file__).parent.parent / "data"
SETS = ("tiny-a", "tiny-c", "tiny-base")


@dataclass(frozen=True)
class RecordedStep:
    """One call of the released code: the prefill from position 0, or the decode of one token.

    `tensors` is keyed without the step's prefix: `logits`, `layers.1.attn.in`, `mtp.0.out`, ...
    """

    name: str
    position: int
    tensors: Mapping[str, Tensor]

    @property
    def ids(self) -> Tensor:
        """INT64 [B, T]."""
        return self.tensors["ids"].long()

    @property
    def num_tokens(self) -> int:
        return self.ids.shape[1]

    def __getitem__(self, key: str) -> Tensor:
        return self.tensors[key]

    def get(self, key: str) -> Tensor | None:
        return self.tensors.get(key)


@dataclass(frozen=True)
class Golden:
    """One file of one set: its steps in order."""

    set_name: str
    steps: tuple[RecordedStep, ...]

    @property
    def prompt(self) -> int:
        """Number of tokens of the prefill."""
        return self.steps[0].num_tokens

    def joined(self, key: str) -> Tensor:
        """A tensor of every step that has it, along the tokens: [B, T of those steps, ...]."""
        return torch.cat([step[key] for step in self.steps if key in step.tensors], 1)

    @property
    def ids(self) -> Tensor:
        """INT64 [B, T of all steps]."""
        return self.joined("ids").long()

    @property
    def next_ids(self) -> Tensor:
        """What MTP takes at each position: the id of the next one. Unknown after the last: 0."""
        if "mtp.ids" in self.steps[-1].tensors:
            return self.joined("mtp.ids").long()
        return torch.cat((self.ids[:, 1:], torch.zeros_like(self.ids[:, :1])), 1)


def _steps(path: Path) -> tuple[RecordedStep, ...]:
    tensors = load_file(path)
    steps: list[RecordedStep] = []
    position = 0
    for number in count(-1):
        name = "prefill" if number < 0 else f"decode{number}"
        own = {
            k.removeprefix(f"{name}."): v for k, v in tensors.items() if k.startswith(f"{name}.")
        }
        if not own:
            break
        steps.append(RecordedStep(name, position, own))
        position += steps[-1].num_tokens
    assert sum(len(s.tensors) for s in steps) == len(tensors), f"keys of {path} are left over"
    return tuple(steps)


@cache
def float32_vectors(set_name: str) -> Golden:
    """Batch 2, weights dequantised, no activation rounding: ids and logits."""
    return Golden(set_name, _steps(DATA / set_name / "float32.safetensors"))


@cache
def official_vectors(set_name: str) -> Golden:
    """Batch 1, every rounding of the released code: ids, logits and the tensors inside each layer."""
    return Golden(set_name, _steps(DATA / set_name / "official.safetensors"))
