"""`ModelConfig`: every number the model's shapes and maths depend on, under its official name."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from ds4export.config.limits import check_config

# Fields of the official file that say what the released models share (loader.py checks them).
RELEASED: dict[str, Any] = {
    "architectures": ["DeepseekV4ForCausalLM"],
    "model_type": "deepseek_v4",
    "torch_dtype": "bfloat16",
    "num_key_value_heads": 1,
    "scoring_func": "sqrtsoftplus",
    "topk_method": "noaux_tc",
    "norm_topk_prob": True,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "attention_bias": False,
    "quantization_config": {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "scale_fmt": "ue8m0",
        "activation_scheme": "dynamic",
        "weight_block_size": [128, 128],
    },
}


@dataclass(frozen=True)
class RopeScaling:
    """YaRN of the layers that compress; the betas bound the ramp between the two frequencies."""

    factor: float
    original_max_position_embeddings: int
    beta_fast: float
    beta_slow: float


@dataclass(frozen=True)
class ModelConfig:
    """The model's sizes; any instance is valid, an invalid one raises ConfigError.

    `compress_ratios` has one entry per main layer, then one per MTP block. `expert_dtype` is None
    only between `load_config` and `open_checkpoint`, which reads it off the weights if it must.
    """

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    head_dim: int
    qk_rope_head_dim: int
    q_lora_rank: int
    o_groups: int
    o_lora_rank: int
    n_routed_experts: int
    num_experts_per_tok: int
    moe_intermediate_size: int
    n_shared_experts: int
    routed_scaling_factor: float
    num_hash_layers: int
    sliding_window: int
    compress_ratios: tuple[int, ...]
    index_n_heads: int
    index_head_dim: int
    index_topk: int
    hc_mult: int
    hc_sinkhorn_iters: int
    hc_eps: float
    rms_norm_eps: float
    rope_theta: float
    compress_rope_theta: float
    rope_scaling: RopeScaling
    max_position_embeddings: int
    num_nextn_predict_layers: int
    swiglu_limit: float
    bos_token_id: int
    eos_token_id: int
    expert_dtype: str | None = None

    def __post_init__(self) -> None:
        check_config(self)

    def ratio(self, layer: int) -> int:
        """Compression ratio of a main layer (0, 4 or 128); MTP block j is layer L + j."""
        return self.compress_ratios[layer]

    def is_hash(self, layer: int) -> bool:
        """Whether a main layer routes by token id; MTP blocks never do."""
        return layer < self.num_hash_layers

    @property
    def variant(self) -> str:
        """Flash, Pro (their -Base siblings included), or custom."""
        sizes = (self.hidden_size, self.num_hidden_layers, self.n_routed_experts)
        return {(4096, 43, 256): "Flash", (7168, 61, 384): "Pro"}.get(sizes, "custom")

    def to_json(self) -> dict[str, Any]:
        """The official spelling, complete: loading it gives an equal config."""
        raw = {**RELEASED, **dataclasses.asdict(self)}
        raw["compress_ratios"] = list(self.compress_ratios)
        raw["rope_scaling"] = {"type": "yarn", **raw["rope_scaling"]}
        if self.expert_dtype is None:
            del raw["expert_dtype"]
        return raw
