"""The pieces that are traced: half layers, embedding, head and MTP merge, each a module with flat arguments."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ds4export.config import ModelConfig
from ds4export.graph.capture import Argument, Captured, capture
from ds4export.model.attention import Step
from ds4export.model.linear import LinearBf16
from ds4export.model.transformer import Head, Layer, MtpBlock
from ds4export.state import F32, layer_state

STEP = ("slots", "positions", "num_new")


class _AttentionHalf(nn.Module):
    def __init__(self, layer: Layer, names: list[str]) -> None:
        super().__init__()
        self.layer, self.names = layer, names

    def forward(
        self,
        x: Tensor,
        slots: Tensor,
        positions: Tensor,
        num_new: Tensor,
        freqs: Tensor,
        *state: Tensor,
    ) -> tuple[Tensor, ...]:
        named = dict(zip(self.names, state, strict=True))
        x, new = self.layer.attention_half(x, Step(slots, positions, num_new), freqs, named)
        return (x, *(new[name] for name in self.names))


class _FeedForwardHalf(nn.Module):
    def __init__(self, layer: Layer) -> None:
        super().__init__()
        self.layer = layer

    def forward(
        self, x: Tensor, ids: Tensor, num_new: Tensor, expert_rows: Tensor
    ) -> tuple[Tensor]:
        return (self.layer.feed_forward_half(x, ids, num_new, expert_rows),)


class _Embed(nn.Module):
    def __init__(self, config: ModelConfig, official: bool) -> None:
        super().__init__()
        self.embed = LinearBf16(config.vocab_size, config.hidden_size)
        self.streams, self.official = config.hc_mult, int(official)

    def forward(self, ids: Tensor) -> tuple[Tensor]:
        return (torch.ops.ds4.embed(ids, self.embed.weight, self.streams, self.official),)


class _Logits(nn.Module):
    """`block` holds the collapse and the norm: the model's own or an MTP block's."""

    def __init__(self, config: ModelConfig, block: Head) -> None:
        super().__init__()
        self.layer, self.head = block, LinearBf16(config.vocab_size, config.hidden_size)

    def forward(self, x: Tensor, rows: Tensor) -> tuple[Tensor]:
        return (self.layer.logits(x, rows, self.head.weight),)


class _Merge(nn.Module):
    def __init__(self, config: ModelConfig, block: MtpBlock, official: bool) -> None:
        super().__init__()
        self.layer, self.embed = block, LinearBf16(config.vocab_size, config.hidden_size)
        self.official = int(official)

    def forward(self, next_ids: Tensor, x: Tensor) -> tuple[Tensor]:
        return (self.layer.merge(next_ids, x, self.embed.weight, self.official),)


class Tracer:
    """Captures the pieces of one model; `official` and `float_scales` hold for all of them."""

    def __init__(self, config: ModelConfig, *, official: bool, float_scales: bool) -> None:
        self.config, self.official, self.float_scales = config, official, float_scales
        self.boundary = torch.bfloat16 if official else torch.float32

    def streams(self, name: str = "x") -> Argument:
        c = self.config
        return Argument(name, self.boundary, ("B", "T", c.hc_mult, c.hidden_size))

    def layer(self, ratio: int, *, hashed: bool) -> Layer:
        return Layer(self.config, ratio, hashed=hashed, float_scales=self.float_scales)

    def state_arguments(self, ratio: int) -> list[Argument]:
        return [
            Argument(
                s.name,
                torch.float32 if s.dtype == F32 else self.boundary,
                ("S", f"rows_{s.name}", s.width),
            )
            for s in layer_state(self.config, ratio, 1024)
        ]

    def attention(self, layer: Layer) -> Captured:
        state = self.state_arguments(layer.ratio)
        step = [Argument(name, torch.int64, ("B",)) for name in STEP]
        freqs = Argument("freqs", torch.float32, (self.config.qk_rope_head_dim // 2,))
        names = [s.name for s in state]
        module = _AttentionHalf(layer, names)
        return capture(
            module, [self.streams(), *step, freqs, *state], ["y", *(f"{n}_out" for n in names)]
        )

    def feed_forward(self, layer: Layer) -> Captured:
        rows = Argument("expert_rows", torch.int64, (self.config.n_routed_experts,))
        arguments = [self.streams(), _ids("ids"), Argument("num_new", torch.int64, ("B",)), rows]
        return capture(_FeedForwardHalf(layer), arguments, ["y"])

    def embed(self) -> Captured:
        return capture(_Embed(self.config, self.official), [_ids("ids")], ["streams"])

    def logits(self, block: Head) -> Captured:
        rows = Argument("logit_rows", torch.int64, ("B", "R"))
        return capture(_Logits(self.config, block), [self.streams(), rows], ["logits"])

    def mtp_block(self, ratio: int) -> MtpBlock:
        return MtpBlock(self.config, ratio, float_scales=self.float_scales)

    def merge(self, block: MtpBlock) -> Captured:
        module = _Merge(self.config, block, self.official)
        return capture(module, [_ids("next_ids"), self.streams()], ["merged"])


def _ids(name: str) -> Argument:
    return Argument(name, torch.int64, ("B", "T"))
