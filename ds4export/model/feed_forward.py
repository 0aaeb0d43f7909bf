"""The mixture of experts of one layer. Specification section 9."""

from __future__ import annotations

import torch
from torch import Tensor

from ds4export.config import ModelConfig
from ds4export.model.linear import LinearBf16, LinearFp8, Weights, tiles

ds4 = torch.ops.ds4


class Gate(LinearBf16):
    """The router: by table of token ids in hash layers, by score and bias elsewhere."""

    tid2eid: Tensor
    bias: Tensor

    def __init__(self, config: ModelConfig, *, hashed: bool) -> None:
        super().__init__(config.n_routed_experts, config.hidden_size)
        self.config, self.hashed = config, hashed
        if hashed:
            self.weight_buffer(
                "tid2eid", config.vocab_size, config.num_experts_per_tok, dtype=torch.int64
            )
        else:
            self.weight_buffer("bias", config.n_routed_experts, dtype=torch.float32)

    def route(self, x: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """x [B, T, D], ids INT64 [B, T] -> weights float32 and expert numbers INT64 [B, T, k]."""
        c = self.config
        if self.hashed:
            return ds4.route_hash(x, self.weight, ids, self.tid2eid, c.routed_scaling_factor)
        return ds4.route_scores(
            x, self.weight, self.bias, c.num_experts_per_tok, c.routed_scaling_factor
        )


class Experts(Weights):
    """All routed experts of a layer as they lie in the checkpoint: one run [E, 3, bytes], one of scales."""

    weight: Tensor
    scale: Tensor

    def __init__(self, config: ModelConfig, *, float_scales: bool) -> None:
        super().__init__()
        e, d, i = config.n_routed_experts, config.hidden_size, config.moe_intermediate_size
        fp4 = config.expert_dtype == "fp4"
        num_bytes, num_scales = (i * d // 2, i * d // 32) if fp4 else (i * d, tiles(i) * tiles(d))
        scale = torch.float32 if float_scales and not fp4 else torch.int8
        self.weight_buffer("weight", e, 3, num_bytes, dtype=torch.int8)
        self.weight_buffer("scale", e, 3, num_scales, dtype=scale)


class SharedExpert(Weights):
    """The expert that every token takes."""

    def __init__(self, config: ModelConfig, *, float_scales: bool) -> None:
        super().__init__()
        self.limit = config.swiglu_limit
        d, i = config.hidden_size, config.moe_intermediate_size * config.n_shared_experts
        self.w1 = LinearFp8(i, d, float_scales=float_scales)
        self.w2 = LinearFp8(d, i, float_scales=float_scales)
        self.w3 = LinearFp8(i, d, float_scales=float_scales)

    def forward(self, x: Tensor) -> Tensor:
        matrices = [t for w in (self.w1, self.w2, self.w3) for t in (w.weight, w.scale)]
        return ds4.shared_expert(x, *matrices, self.limit)


class FeedForward(Weights):
    """x [B, T, D] (normed), ids INT64 [B, T] -> [B, T, D]."""

    def __init__(self, config: ModelConfig, *, hashed: bool, float_scales: bool) -> None:
        super().__init__()
        self.config = config
        self.gate = Gate(config, hashed=hashed)
        self.experts = Experts(config, float_scales=float_scales)
        self.shared_experts = SharedExpert(config, float_scales=float_scales)

    def forward(self, x: Tensor, ids: Tensor, num_new: Tensor, expert_rows: Tensor) -> Tensor:
        weights, indices = self.gate.route(x, ids)
        run = (self.experts.weight, self.experts.scale, expert_rows)
        limit, weight_format = self.config.swiglu_limit, self.config.expert_dtype
        partial = ds4.moe(x, weights, indices, *run, num_new, limit, 0, weight_format)
        return ds4.moe_combine(partial, self.shared_experts(x))
