"""Models over the recorded checkpoints, state to run them with, and steps of any chunking."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from ds4export.checkpoint import open_checkpoint
from ds4export.model import Transformer, build_model
from ds4export.model.attention import Attention, State, Step
from ds4export.state import F32, layer_state
from tests.kit.vectors import DATA


@cache
def recorded_model(set_name: str, *, official: bool) -> Transformer:
    """The model of tests/data/<set_name>, MTP included. Shared: do not change it."""
    return build_model(open_checkpoint(DATA / set_name / "checkpoint"), official=official).eval()


def one_row(position: int, num_new: int, slot: int = 0) -> Step:
    """A step of one sequence."""
    return Step(torch.tensor([slot]), torch.tensor([position]), torch.tensor([num_new]))


def layers_of(model: Transformer) -> dict[str, Any]:
    """`layers.{i}` and `mtp.{j}` -> module, in the order in which they run."""
    return {f"layers.{i}": m for i, m in model.layers.items()} | {
        f"mtp.{j}": m for j, m in model.mtp.items()
    }


def layer_pool(
    model: Transformer,
    ratio: int,
    *,
    slots: int = 1,
    context: int = 512,
    spare: int = 0,
    fill: float = torch.nan,
) -> State:
    """The state of one layer, [slots, rows, width] each, filled with `fill`."""
    boundary = torch.bfloat16 if model.official else torch.float32
    return {
        spec.name: torch.full(
            (slots, spec.rows, spec.width),
            fill,
            dtype=torch.float32 if spec.dtype == F32 else boundary,
        )
        for spec in layer_state(model.config, ratio, context, spare)
    }


def model_pool(model: Transformer, **options: Any) -> State:
    """The state of all layers and MTP blocks, keyed `layers.{i}.{name}`; options as `layer_pool`."""
    return {
        f"{prefix}.{name}": tensor
        for prefix, layer in layers_of(model).items()
        for name, tensor in layer_pool(model, layer.ratio, **options).items()
    }


def run_chunks(
    model: Transformer,
    ids: Tensor,
    next_ids: Tensor,
    chunks: Sequence[Sequence[int]],
    state: State,
    slots: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """Logits and MTP logits [B, T, V] of ids [B, T]; row b takes chunks[b][i] tokens in call i.

    Rows of one call may take different numbers, 0 included. Padding ids are id 1. `state` is updated.
    """
    batch, total = ids.shape
    logits, mtp_logits = (
        torch.full((batch, total, model.config.vocab_size), torch.nan) for _ in range(2)
    )
    positions = [0] * batch
    for call in zip(*chunks, strict=True):
        width = max(*call, 1)
        step = Step(*(torch.tensor(v) for v in (list(slots), positions, list(call))))
        now, following = (_padded(v, positions, call, width) for v in (ids, next_ids))
        x, new = model(now, step, state)
        state |= new
        rows = torch.arange(width).expand(batch, width)
        out = model.logits(x, rows, model.head.weight)
        if model.mtp:
            x, new = model.mtp_forward(0, following, x, step, state)
            state |= new
            mtp_out = model.mtp["0"].logits(x, rows, model.head.weight)  # type: ignore[operator]
        for b, n in enumerate(call):
            logits[b, positions[b] : positions[b] + n] = out[b, :n]
            if model.mtp:
                mtp_logits[b, positions[b] : positions[b] + n] = mtp_out[b, :n]
            positions[b] += n
    return logits, mtp_logits


def _padded(ids: Tensor, positions: Sequence[int], call: Sequence[int], width: int) -> Tensor:
    out = torch.ones(len(ids), width, dtype=torch.int64)
    for b, (p, n) in enumerate(zip(positions, call, strict=True)):
        out[b, :n] = ids[b, p : p + n]
    return out


class _RecordedChoice(nn.Module):
    """Stands in for an indexer: keeps its state and its own choice, returns the recorded one."""

    def __init__(self, indexer: nn.Module, chosen: Tensor | None) -> None:
        super().__init__()
        self.indexer, self.chosen = indexer, chosen
        self.own: Tensor | None = None

    def forward(self, *args: Any) -> tuple[Tensor, State]:
        self.own, state = self.indexer(*args)
        return self.own if self.chosen is None else self.chosen, state


@contextmanager
def forced_choice(attention: Attention, chosen: Tensor | None) -> Iterator[_RecordedChoice]:
    """Inside, a CSA layer attends to `chosen` INT64 [B, T, k]; the yielded object's `own` is what it would take."""
    indexer = attention.indexer
    stand_in = _RecordedChoice(indexer, chosen)
    attention.indexer = stand_in  # type: ignore[assignment]
    try:
        yield stand_in
    finally:
        attention.indexer = indexer
