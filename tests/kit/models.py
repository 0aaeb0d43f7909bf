"""Models over the recorded checkpoints, state to run them with, and steps of any chunking."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from ds4export.checkpoint import open_checkpoint
from ds4export.model import Transformer, build_model
from ds4export.model import attention as attention_module
from ds4export.model.attention import Attention, State, Step
from ds4export.ops._numerics import rounded, stored
from ds4export.ops.query_heads import rotated
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


class Recorded(nn.Module):
    """Stands in for a compressor or an indexer: runs it, keeps what it made, hands on what was recorded."""

    def __init__(self, module: nn.Module, replace: Callable[..., Any]) -> None:
        super().__init__()
        self.module, self.replace = module, replace
        self.own: Any = None

    def forward(self, *args: Any) -> Any:
        self.own = self.module(*args)
        return self.replace(self.own)


@contextmanager
def recorded_inside(
    attention: Attention,
    new: slice,
    entries: Tensor | None,
    keys: Tensor | None,
    chosen: Tensor | None,
) -> Iterator[dict[str, Recorded]]:
    """Inside, a layer attends to recorded entries, and a CSA layer to the recorded choice.

    `entries` and `keys` [1, c, d] are those that the step emits, at rows `new` of their caches; `chosen` INT64
    [1, T, k]. None leaves that part to the layer. The stand-ins that are yielded keep its own results.
    """

    def with_rows(rows: Tensor | None) -> Callable[..., Any]:
        def replace(made: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            pending, cache = made
            if rows is not None:
                cache = cache.clone()
                cache[:, new] = rows
            return pending, cache

        return replace

    def with_choice(made: tuple[Tensor, State]) -> tuple[Tensor, State]:
        return (made[0] if chosen is None else chosen), made[1]

    kept = []
    stand_ins: dict[str, Recorded] = {}
    places: list[tuple[str, Any, str, Callable[..., Any]]] = []
    if attention.ratio:
        places.append(("entries", attention, "compressor", with_rows(entries)))
    if attention.ratio == 4:
        places.append(("index_keys", attention.indexer, "compressor", with_rows(keys)))
        places.append(("chosen", attention, "indexer", with_choice))
    for name, owner, attribute, replace in places:
        module = getattr(owner, attribute)
        kept.append((owner, attribute, module))
        stand_ins[name] = Recorded(module, replace)
        setattr(owner, attribute, stand_ins[name])
    try:
        yield stand_ins
    finally:
        for owner, attribute, module in reversed(kept):
            setattr(owner, attribute, module)


class _ShortTensorRoot:
    """`torch.ops.ds4`, but for the reciprocal root of `query_heads`: 1 / bf16(sqrt(x)), two roundings."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch.ops.ds4, name)

    def query_heads(
        self, x: Tensor, positions: Tensor, freqs: Tensor, heads: int, eps: float
    ) -> Tensor:
        q = x.float().unflatten(-1, (heads, -1))
        mean = rounded(rounded(q * q, x).mean(-1, keepdim=True), x)
        root = rounded(torch.sqrt(rounded(mean + eps, x)), x)
        q = rounded(q * rounded(1 / root, x), x)
        return stored(rotated(q, positions, freqs), x)


@contextmanager
def short_tensor_root(*, active: bool = True) -> Iterator[None]:
    """Inside, the per-head q norm rounds as torch's CPU kernel does for a few elements.

    `torch.rsqrt` of a bf16 tensor takes the float32 root and rounds once, on a GPU and in a CPU's vector registers.
    What does not fill such a register goes through scalar code, in which the square root is rounded to bf16 before
    it is inverted. The vectors were recorded on a CPU with batch 2 and four heads: prefills fill registers, a decode
    of 2 · 4 factors does not. The models have 64 heads and more, and a kernel must not depend on its batch, so
    `query_heads` rounds once; what the vectors hold for decode is reached only like this.
    """
    kept = attention_module.ds4
    if active:
        attention_module.ds4 = _ShortTensorRoot()  # type: ignore[assignment]
    try:
        yield
    finally:
        attention_module.ds4 = kept
