"""The official vectors walked op by op: each piece of the model runs on recorded inputs.

No error travels: what a piece is fed with is what the released code fed it with. State evolves from recorded inputs
too, and a CSA layer attends to the recorded choice (its own choice is compared apart, and what it yields).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ds4export.model import Transformer
from ds4export.model.attention import State, Step
from ds4export.ops.indexer_topk import scores
from tests.kit.models import (
    layer_pool,
    layers_of,
    one_row,
    recorded_inside,
    recorded_model,
    short_tensor_root,
)
from tests.kit.vectors import RecordedStep, official_vectors

ds4 = torch.ops.ds4


@dataclass(frozen=True)
class Compared:
    """One result of ours beside the recorded one; `place` is `prefill.layers.1`, `decode3.mtp.0`, ..."""

    what: str
    place: str
    got: Tensor
    want: Tensor

    @property
    def phase(self) -> str:
        return "prefill" if self.place.startswith("prefill") else "decode"


@dataclass(frozen=True)
class Choice:
    """What one CSA query chose, and what the released code chose.

    `ulps` says how far apart the scores of the entries are that only one of them chose: 0 is a tie, 1 one unit in the
    last place of bf16.
    """

    place: str
    token: int
    got: frozenset[int]
    want: frozenset[int]
    ulps: float


@dataclass
class Walk:
    """Everything that was compared, in the order of computation."""

    compared: list[Compared]
    choices: list[Choice]


def walk(set_name: str, steps: Sequence[RecordedStep] | None = None) -> Walk:
    """Run the model of a set over its official vectors, or over `steps` in their place."""
    model = recorded_model(set_name, official=True)
    layers = layers_of(model)
    states = {prefix: layer_pool(model, layer.ratio) for prefix, layer in layers.items()}
    made = Walk([], [])
    for step in steps or official_vectors(set_name).steps:
        add = _recorder(made, step.name)
        x = step["layers.0.in"]
        add("embed", "layers.0", model.embed_streams(step.ids), x)
        for prefix, layer in layers.items():
            if f"{prefix}.attn.in" not in step.tensors:
                continue  # no MTP in the file
            ids = step.ids
            if prefix.startswith("mtp"):
                ids = step[f"{prefix}.ids"].long()
                merged = layer.merge(ids, x, model.embed.weight, 1)
                x = step[f"{prefix}.in"]
                add("MTP merge", prefix, merged, x)
            _attention(model, step, prefix, layer, states[prefix], add, made)
            x = _rest_of_layer(model, step, prefix, layer, x, ids, add)
            if prefix == f"layers.{model.config.num_hidden_layers - 1}":
                add("logits", "head", _logits(model, model, x), step["logits"])
            if prefix.startswith("mtp"):
                add("logits", prefix, _logits(model, layer, x), step[f"{prefix}.logits"])
    return made


Add = Callable[[str, str, Tensor, Tensor], None]


def _recorder(made: Walk, step_name: str) -> Add:
    def add(what: str, place: str, got: Tensor, want: Tensor) -> None:
        made.compared.append(Compared(what, f"{step_name}.{place}", got, want))

    return add


def _logits(model: Transformer, head: Any, x: Tensor) -> Tensor:
    rows = torch.arange(x.shape[1])[None]
    logits: Tensor = head.logits(x, rows, model.head.weight)
    return logits


def recorded_choice(model: Transformer, step: RecordedStep, prefix: str) -> Tensor:
    """INT64 [1, T, k] of entry numbers: the file counts them behind the window's columns."""
    columns = step.num_tokens if step.position == 0 else model.config.sliding_window
    listed = step[f"{prefix}.attn.indexer.topk"].long()
    return torch.where(listed < 0, -1, listed - columns)


def _attention(
    model: Transformer,
    step: RecordedStep,
    prefix: str,
    layer: Any,
    state: State,
    add: Add,
    made: Walk,
) -> None:
    """Attention with the recorded entries and choice, as the recording machine rounds and as others do."""
    x, want = step[f"{prefix}.attn.in"], step[f"{prefix}.attn.out"]
    where, freqs = one_row(step.position, step.num_tokens), model.freqs[layer.ratio]
    kind = {0: "window", 4: "CSA", 128: "HCA"}[layer.ratio]
    ratio, end = max(layer.ratio, 1), step.position + step.num_tokens
    new = slice(step.position // ratio, end // ratio)
    entries, keys = (step.get(f"{prefix}.attn.{n}") for n in ("compressor.out", "indexer.keys"))
    assert layer.ratio == 0 or (entries is None) == (new.start == new.stop), f"{prefix}: entries"
    chosen = recorded_choice(model, step, prefix) if layer.ratio == 4 else None
    with recorded_inside(layer.attn, new, entries, keys, chosen) as inside:
        y, after = layer.attn(x, where, freqs, state)
        if step.num_tokens == 1:
            add(f"attn.out {kind}, one rounding of the root", prefix, y, want)
            with short_tensor_root():
                y, _ = layer.attn(x, where, freqs, state)
        add(f"attn.out {kind}", prefix, y, want)
        if chosen is not None:
            own, index_state = inside["chosen"].own
            by_entry = _index_scores(layer.attn, x, where, freqs, index_state["index_keys"])
            made.choices.extend(_choices(f"{step.name}.{prefix}", own, chosen, by_entry))
        if entries is not None:
            add(f"compressor.out {kind}", prefix, inside["entries"].own[1][:, new], entries)
        if keys is not None:
            add("index keys", prefix, inside["index_keys"].own[1][:, new], keys)
    if layer.ratio == 4:
        with (
            recorded_inside(layer.attn, new, entries, keys, None),
            short_tensor_root(active=step.num_tokens == 1),
        ):
            y, _ = layer.attn(x, where, freqs, state)
        add("attn.out CSA, own choice", prefix, y, want)
    state |= after


def _index_scores(attn: Any, x: Tensor, where: Step, freqs: Tensor, keys: Tensor) -> Tensor:
    """float32 [T, entries] of one sequence."""
    c, indexer = attn.config, attn.indexer.module
    qr = attn.q_norm(attn.wq_a(x))
    q = ds4.index_query(indexer.wq_b(qr), where.positions, freqs, c.index_n_heads, c.index_head_dim)
    return scores(q[0], indexer.weights_proj(x)[0], keys[0])


def _choices(place: str, own: Tensor, recorded: Tensor, by_entry: Tensor) -> Iterator[Choice]:
    for t, pair in enumerate(zip(own[0].tolist(), recorded[0].tolist(), strict=True)):
        mine, theirs = (frozenset(chosen) - {-1} for chosen in pair)
        yield Choice(place, t, mine, theirs, _ulps_apart(by_entry[t, sorted(mine ^ theirs)]))


def _ulps_apart(values: Tensor) -> float:
    if not len(values):
        return 0.0
    _, exponent = torch.frexp(values.abs().max())
    return float((values.max() - values.min()) * 2.0 ** (8 - int(exponent)))


def _rest_of_layer(
    model: Transformer,
    step: RecordedStep,
    prefix: str,
    layer: Any,
    x: Tensor,
    ids: Tensor,
    add: Add,
) -> Tensor:
    """Hyper-connections, router and experts; returns the layer's recorded output."""
    a, post, comb = layer._hc_pre(x, "attn", layer.attn_norm)
    add("hc_pre: attn.in", prefix, a, step[f"{prefix}.attn.in"])
    middle = ds4.hc_post(step[f"{prefix}.attn.out"], x, post, comb)
    h, post, comb = layer._hc_pre(middle, "ffn", layer.ffn_norm)
    add("hc_post, hc_pre: ffn.in", prefix, h, step[f"{prefix}.ffn.in"])
    h = step[f"{prefix}.ffn.in"]
    weights, indices = layer.ffn.gate.route(h, ids)
    kept_weights, kept_indices = (
        step[f"{prefix}.ffn.gate.{name}"][None] for name in ("weights", "indices")
    )
    add("gate weights", prefix, weights, kept_weights)
    add("gate indices", prefix, indices, kept_indices.long())
    num_new = torch.tensor([step.num_tokens])
    y = layer.ffn(h, ids, num_new, model.expert_rows)
    add("ffn.out, own routing", prefix, y, step[f"{prefix}.ffn.out"])
    add(
        "ffn.out",
        prefix,
        _experts(model, layer.ffn, h, kept_weights, kept_indices.long(), num_new),
        step[f"{prefix}.ffn.out"],
    )
    out = ds4.hc_post(step[f"{prefix}.ffn.out"], middle, post, comb)
    add("two hc_post: out", prefix, out, step[f"{prefix}.out"])
    return step[f"{prefix}.out"]


def _experts(
    model: Transformer, ffn: Any, x: Tensor, weights: Tensor, indices: Tensor, num_new: Tensor
) -> Tensor:
    c = model.config
    run = (ffn.experts.weight, ffn.experts.scale, model.expert_rows)
    partial = ds4.moe(x, weights, indices, *run, num_new, c.swiglu_limit, 0, c.expert_dtype)
    combined: Tensor = ds4.moe_combine(partial, ffn.shared_experts(x))
    return combined
