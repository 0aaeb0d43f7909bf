"""Configs to synthesise checkpoints from: small ones for tests, slices with the released widths.

Owns sizes only. `FLASH` and `PRO` are the released models, for counting; writing them takes
hundreds of GB, so they are not presets.
"""

from __future__ import annotations

from dataclasses import replace

from ds4export.config import ModelConfig, RopeScaling

FLASH = ModelConfig(
    vocab_size=129280,
    hidden_size=4096,
    num_hidden_layers=43,
    num_attention_heads=64,
    head_dim=512,
    qk_rope_head_dim=64,
    q_lora_rank=1024,
    o_groups=8,
    o_lora_rank=1024,
    n_routed_experts=256,
    num_experts_per_tok=6,
    moe_intermediate_size=2048,
    n_shared_experts=1,
    routed_scaling_factor=1.5,
    num_hash_layers=3,
    sliding_window=128,
    compress_ratios=(0, 0, *(4, 128) * 20, 4, 0),
    index_n_heads=64,
    index_head_dim=128,
    index_topk=512,
    hc_mult=4,
    hc_sinkhorn_iters=20,
    hc_eps=1e-6,
    rms_norm_eps=1e-6,
    rope_theta=10000.0,
    compress_rope_theta=160000.0,
    rope_scaling=RopeScaling(16.0, 65536, 32.0, 1.0),
    max_position_embeddings=1048576,
    num_nextn_predict_layers=1,
    swiglu_limit=10.0,
    bos_token_id=0,
    eos_token_id=1,
    expert_dtype="fp4",
)
PRO = replace(
    FLASH,
    hidden_size=7168,
    num_hidden_layers=61,
    num_attention_heads=128,
    q_lora_rank=1536,
    o_groups=16,
    n_routed_experts=384,
    moe_intermediate_size=3072,
    routed_scaling_factor=2.5,
    compress_ratios=(128, 128, *(4, 128) * 29, 4, 0),
    index_topk=1024,
)

# More than ten experts: their names do not sort by number, and readers must not assume so.
TINY = replace(
    FLASH,
    vocab_size=512,
    hidden_size=256,
    num_hidden_layers=3,
    num_attention_heads=4,
    head_dim=128,
    q_lora_rank=128,
    o_groups=2,
    o_lora_rank=128,
    n_routed_experts=12,
    num_experts_per_tok=2,
    moe_intermediate_size=128,
    num_hash_layers=1,
    sliding_window=16,
    compress_ratios=(0, 4, 128, 0),
    index_n_heads=16,
    index_topk=8,
    rope_scaling=RopeScaling(16.0, 64, 32.0, 1.0),
)

PRESETS: dict[str, ModelConfig] = {
    "tiny": TINY,
    "flash-slice": replace(
        FLASH,
        num_hidden_layers=4,
        compress_ratios=(0, 4, 128, 4, 0),
        n_routed_experts=16,
        num_hash_layers=1,
    ),
    "pro-slice": replace(
        PRO,
        num_hidden_layers=3,
        compress_ratios=(128, 4, 0, 0),
        n_routed_experts=8,
        num_hash_layers=1,
        vocab_size=4096,
    ),
}
