"""Sparse attention of one layer: window, CSA (ratio 4) or HCA (ratio 128). Specification sections 4 to 8."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ds4export.config import ModelConfig
from ds4export.model.linear import GroupedLinearFp8, LinearBf16, LinearFp8, Norm, Weights

ds4 = torch.ops.ds4
State = dict[str, Tensor]


class Step(NamedTuple):
    """Where a chunk stands, INT64 [B] each: pool slot, position of its first token, number of real tokens."""

    slots: Tensor
    positions: Tensor
    num_new: Tensor


class Compressor(Weights):
    """Pools blocks of tokens into cache entries of width d; also the indexer's keys (`index`)."""

    ape: Tensor

    def __init__(self, config: ModelConfig, ratio: int, width: int, *, index: bool = False) -> None:
        super().__init__()
        self.config, self.ratio, self.index = config, ratio, index
        channels = 2 * width if ratio == 4 else width  # blocks of ratio 4 overlap: two halves
        self.wkv = LinearBf16(channels, config.hidden_size)
        self.wgate = LinearBf16(channels, config.hidden_size)
        self.norm = Norm(width, config.rms_norm_eps)
        self.weight_buffer("ape", ratio, channels, dtype=torch.float32)

    def forward(
        self, x: Tensor, step: Step, freqs: Tensor, pending: Tensor, cache: Tensor
    ) -> tuple[Tensor, Tensor]:
        """x [B, T, D], pending and cache of the layer -> their successors, with this chunk's entries appended."""
        weights = (self.wkv.weight, self.wgate.weight, self.ape, self.norm.weight)
        args = (x, *weights, freqs, pending, cache, *step, self.config.rms_norm_eps)
        if self.index:
            return ds4.compress_index(*args, self.config.index_head_dim)
        return ds4.compress_csa(*args) if self.ratio == 4 else ds4.compress_hca(*args)


class Indexer(Weights):
    """Chooses index_topk entries per query by a small attention of its own."""

    def __init__(self, config: ModelConfig, *, float_scales: bool) -> None:
        super().__init__()
        self.config = config
        width = config.index_n_heads * config.index_head_dim
        self.wq_b = LinearFp8(width, config.q_lora_rank, float_scales=float_scales)
        self.weights_proj = LinearBf16(config.index_n_heads, config.hidden_size)
        self.compressor = Compressor(config, 4, config.index_head_dim, index=True)

    def forward(
        self, x: Tensor, qr: Tensor, step: Step, freqs: Tensor, state: State
    ) -> tuple[Tensor, State]:
        """x [B, T, D], qr [B, T, q_lora] -> chosen INT64 [B, T, index_topk] and the new index state."""
        c = self.config
        q = ds4.index_query(self.wq_b(qr), step.positions, freqs, c.index_n_heads, c.index_head_dim)
        pending, keys = self.compressor(x, step, freqs, state["index_pending"], state["index_keys"])
        chosen = ds4.indexer_topk(q, self.weights_proj(x), keys, *step, c.index_topk, 4)
        return chosen, {"index_pending": pending, "index_keys": keys}


class Attention(Weights):
    """x [B, T, D] (normed) -> [B, T, D] and the layer's new state."""

    attn_sink: Tensor

    def __init__(self, config: ModelConfig, ratio: int, *, float_scales: bool) -> None:
        super().__init__()
        self.config, self.ratio = config, ratio
        heads, d, groups = config.num_attention_heads, config.head_dim, config.o_groups
        z = groups * config.o_lora_rank

        def linear(outputs: int, inputs: int) -> LinearFp8:
            return LinearFp8(outputs, inputs, float_scales=float_scales)

        self.wq_a = linear(config.q_lora_rank, config.hidden_size)
        self.q_norm = Norm(config.q_lora_rank, config.rms_norm_eps)
        self.wq_b = linear(heads * d, config.q_lora_rank)
        self.wkv = linear(d, config.hidden_size)
        self.kv_norm = Norm(d, config.rms_norm_eps)
        self.weight_buffer("attn_sink", heads, dtype=torch.float32)
        self.wo_a = GroupedLinearFp8(z, heads * d // groups, groups, float_scales=float_scales)
        self.wo_b = linear(config.hidden_size, z)
        if ratio:
            self.compressor = Compressor(config, ratio, d)
        if ratio == 4:
            self.indexer = Indexer(config, float_scales=float_scales)

    def forward(self, x: Tensor, step: Step, freqs: Tensor, state: State) -> tuple[Tensor, State]:
        c = self.config
        qr = self.q_norm(self.wq_a(x))
        q = ds4.query_heads(
            self.wq_b(qr), step.positions, freqs, c.num_attention_heads, c.rms_norm_eps
        )
        kv = ds4.kv_row(self.wkv(x), self.kv_norm.weight, step.positions, freqs, c.rms_norm_eps)
        head, tail = (q, kv, state["window"]), (self.attn_sink, freqs, *step, c.sliding_window)
        if self.ratio == 0:
            o, window = ds4.attention_window(*head, *tail)
            return self.wo_b(self.wo_a(o)), {"window": window}
        pending, entries = self.compressor(x, step, freqs, state["pending"], state["entries"])
        new = {"pending": pending, "entries": entries}
        if self.ratio == 4:
            chosen, index = self.indexer(x, qr, step, freqs, state)
            o, window = ds4.attention_csa(*head, entries, chosen, *tail)
            new |= index
        else:
            o, window = ds4.attention_hca(*head, entries, *tail, self.ratio)
        return self.wo_b(self.wo_a(o)), {"window": window, **new}
