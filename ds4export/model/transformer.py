"""The whole model: embedding, layers wrapped in hyper-connections, head, and the MTP block.

One forward serves prefill, chunked prefill of any chunk length and decode: rows of a batch are independent sequences
at their own positions. All state comes in and goes out. Specification sections 3, 8.2 and 10.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from ds4export.config import ModelConfig
from ds4export.model.attention import Attention, State, Step
from ds4export.model.feed_forward import FeedForward
from ds4export.model.linear import LinearBf16, LinearFp8, Norm, Weights
from ds4export.model.rope import layer_freqs

ds4 = torch.ops.ds4


class Layer(Weights):
    """One decoder layer: attention, then experts, each between hc_pre and hc_post.

    x [B, T, N, D] streams. The two halves are traced apart, so that each kind is one ONNX function.
    """

    def __init__(
        self, config: ModelConfig, ratio: int, *, hashed: bool, float_scales: bool
    ) -> None:
        Weights.__init__(self)
        self.config, self.ratio, self.hashed = config, ratio, hashed
        n, d = config.hc_mult, config.hidden_size
        self.attn_norm, self.ffn_norm = Norm(d, config.rms_norm_eps), Norm(d, config.rms_norm_eps)
        for part in ("attn", "ffn"):
            self.weight_buffer(f"hc_{part}_fn", (2 + n) * n, n * d, dtype=torch.float32)
            self.weight_buffer(f"hc_{part}_base", (2 + n) * n, dtype=torch.float32)
            self.weight_buffer(f"hc_{part}_scale", 3, dtype=torch.float32)
        self.attn = Attention(config, ratio, float_scales=float_scales)
        self.ffn = FeedForward(config, hashed=hashed, float_scales=float_scales)

    def _hc_pre(self, x: Tensor, part: str, norm: Norm) -> tuple[Tensor, Tensor, Tensor]:
        c = self.config
        fn, base, scale = (self.get_buffer(f"hc_{part}_{name}") for name in ("fn", "base", "scale"))
        return ds4.hc_pre(
            x, fn, base, scale, norm.weight, c.hc_sinkhorn_iters, c.hc_eps, c.rms_norm_eps
        )

    def attention_half(
        self, x: Tensor, step: Step, freqs: Tensor, state: State
    ) -> tuple[Tensor, State]:
        a, post, comb = self._hc_pre(x, "attn", self.attn_norm)
        y, new_state = self.attn(a, step, freqs, state)
        return ds4.hc_post(y, x, post, comb), new_state

    def feed_forward_half(
        self, x: Tensor, ids: Tensor, num_new: Tensor, expert_rows: Tensor
    ) -> Tensor:
        a, post, comb = self._hc_pre(x, "ffn", self.ffn_norm)
        return ds4.hc_post(self.ffn(a, ids, num_new, expert_rows), x, post, comb)

    def forward(
        self, x: Tensor, ids: Tensor, step: Step, freqs: Tensor, expert_rows: Tensor, state: State
    ) -> tuple[Tensor, State]:
        x, new_state = self.attention_half(x, step, freqs, state)
        return self.feed_forward_half(x, ids, step.num_new, expert_rows), new_state


class Head(Weights):
    """The collapse of the streams and the final norm; the vocabulary matrix is shared and comes from outside."""

    config: ModelConfig
    norm: Norm
    hc_head_fn: Tensor
    hc_head_base: Tensor
    hc_head_scale: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.add_head(config)

    def add_head(self, config: ModelConfig) -> None:
        self.config = config
        n, d = config.hc_mult, config.hidden_size
        self.norm = Norm(d, config.rms_norm_eps)
        self.weight_buffer("hc_head_fn", n, n * d, dtype=torch.float32)
        self.weight_buffer("hc_head_base", n, dtype=torch.float32)
        self.weight_buffer("hc_head_scale", 1, dtype=torch.float32)

    def logits(self, x: Tensor, rows: Tensor, weight: Tensor) -> Tensor:
        """x [B, T, N, D], rows INT64 [B, R] -> float32 [B, R, V]."""
        c = self.config
        hc = (self.hc_head_fn, self.hc_head_base, self.hc_head_scale)
        return ds4.head(
            ds4.hc_head(x, *hc, self.norm.weight, rows, c.hc_eps, c.rms_norm_eps), weight
        )


class MtpBlock(Layer, Head):
    """Predicts the token after next: position t pairs the main model's streams with the id at t + 1."""

    def __init__(self, config: ModelConfig, ratio: int, *, float_scales: bool) -> None:
        Layer.__init__(self, config, ratio, hashed=False, float_scales=float_scales)
        self.add_head(config)
        d, eps = config.hidden_size, config.rms_norm_eps
        self.enorm, self.hnorm = Norm(d, eps), Norm(d, eps)
        self.e_proj = LinearFp8(d, d, float_scales=float_scales)
        self.h_proj = LinearFp8(d, d, float_scales=float_scales)

    def merge(self, next_ids: Tensor, x: Tensor, embed: Tensor, official: int) -> Tensor:
        """next_ids INT64 [B, T] (the id at t + 1), x [B, T, N, D] -> the block's input streams."""
        e = ds4.embed(next_ids, embed, 1, official)  # [B, T, 1, D]
        return ds4.mtp_merge(self.e_proj(self.enorm(e)), self.h_proj(self.hnorm(x)))


class Transformer(Head):
    """Layers `begin` to `end` of the model, the embedding before layer 0, the head after the last one.

    `official` chooses the numerics: bf16 streams with every rounding of the released code, or float32.
    """

    def __init__(
        self,
        config: ModelConfig,
        layers: range,
        *,
        official: bool,
        float_scales: bool,
        with_mtp: bool,
    ) -> None:
        super().__init__(config)
        self.official, self.layer_range = official, layers
        c = config
        self.embed = LinearBf16(c.vocab_size, c.hidden_size)
        self.head = LinearBf16(c.vocab_size, c.hidden_size)
        self.layers = nn.ModuleDict(
            {
                str(i): Layer(c, c.ratio(i), hashed=c.is_hash(i), float_scales=float_scales)
                for i in layers
            }
        )
        blocks = c.num_nextn_predict_layers if with_mtp else 0
        self.mtp = nn.ModuleDict(
            {
                str(j): MtpBlock(c, c.ratio(c.num_hidden_layers + j), float_scales=float_scales)
                for j in range(blocks)
            }
        )
        self.freqs = {ratio: layer_freqs(c, ratio) for ratio in (0, 4, 128)}
        self.expert_rows = torch.arange(c.n_routed_experts)

    def layer(self, i: int) -> Layer:
        return cast(Layer, self.layers[str(i)])

    def mtp_block(self, j: int) -> MtpBlock:
        return cast(MtpBlock, self.mtp[str(j)])

    def embed_streams(self, ids: Tensor) -> Tensor:
        return ds4.embed(ids, self.embed.weight, self.config.hc_mult, int(self.official))

    def forward(
        self, ids: Tensor, step: Step, state: dict[str, Tensor], streams: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """One step over all layers of the range.

        Args:
            ids: INT64 [B, T]; padding ids (beyond num_new) must be valid ids.
            step: slots, positions, num_new.
            state: `layers.{i}.{name}` -> [S, rows, width]; see `ds4export.state`.
            streams: input streams [B, T, N, D] where the range does not begin at layer 0.

        Returns:
            The streams after the last layer [B, T, N, D], and the new state.
        """
        x = self.embed_streams(ids) if streams is None else streams
        new: dict[str, Tensor] = {}
        for i in self.layer_range:
            x, after = run_layer(self.layer(i), f"layers.{i}", x, ids, step, self, state)
            new |= after
        return x, new

    def mtp_forward(
        self, j: int, next_ids: Tensor, x: Tensor, step: Step, state: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """MTP block j: next_ids INT64 [B, T], x the main model's streams -> the block's streams and state."""
        block = self.mtp_block(j)
        x = block.merge(next_ids, x, self.embed.weight, int(self.official))
        return run_layer(block, f"mtp.{j}", x, next_ids, step, self, state)


def run_layer(
    layer: Layer,
    prefix: str,
    x: Tensor,
    ids: Tensor,
    step: Step,
    model: Transformer,
    state: dict[str, Tensor],
) -> tuple[Tensor, dict[str, Tensor]]:
    """A layer (or MTP block) with its own share of the state, named `{prefix}.{name}`."""
    own = {k.removeprefix(f"{prefix}."): v for k, v in state.items() if k.startswith(f"{prefix}.")}
    x, new = layer.attention_half(x, step, model.freqs[layer.ratio], own)
    x = layer.feed_forward_half(x, ids, step.num_new, model.expert_rows)
    return x, {f"{prefix}.{k}": v for k, v in new.items()}
