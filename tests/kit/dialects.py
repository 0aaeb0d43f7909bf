"""Official tensors renamed as other programs store them, written independently of the reader."""

from __future__ import annotations

import re
from typing import Any

from tests.kit.checkpoints import Entry, Tensors

# Each rule applies to what the ones above it left.
HF_RULES = (
    (r"^embed\.", "model.embed_tokens."),
    (r"^head\.", "lm_head."),
    (r"^norm\.", "model.norm."),
    (r"^hc_head_", "model.hc_head.hc_"),
    (r"^layers\.", "model.layers."),
    (r"\.attn_norm\.", ".input_layernorm."),
    (r"\.ffn_norm\.", ".post_attention_layernorm."),
    (r"\.hc_(attn|ffn)_(\w+)$", r".\1_hc.\2"),
    (r"\.attn\.attn_sink$", ".self_attn.sinks"),
    (r"\.attn\.indexer\.compressor\.", ".self_attn.compressor.indexer."),
    (r"\.attn\.indexer\.weights_proj\.", ".self_attn.compressor.indexer.scorer.weights_proj."),
    (r"\.attn\.indexer\.", ".self_attn.compressor.indexer."),
    (r"\.attn\.", ".self_attn."),
    (r"(compressor\.(?:indexer\.)?)norm\.", r"\1kv_norm."),
    (r"\.ape$", ".position_bias"),
    (r"\.q_norm\.", ".q_a_norm."),
    (r"\.wgate\.", ".gate_proj."),
    (r"\.w(q_a|q_b|kv|o_a|o_b)\.", r".\1_proj."),
    (r"\.ffn\.", ".mlp."),
    (r"\.gate\.bias$", ".gate.e_score_correction_bias"),
    (r"shared_experts\.w1\.", "shared_experts.gate_proj."),
    (r"shared_experts\.w2\.", "shared_experts.down_proj."),
    (r"shared_experts\.w3\.", "shared_experts.up_proj."),
    (r"(?<!_hc)\.scale$", ".weight_scale_inv"),
)


def hf_module_names(tensors: Tensors, num_experts: int) -> Tensors:
    """HF module names; experts stacked into [E, 2I, ...] and [E, D, ...]; no MTP."""
    main = {name: entry for name, entry in tensors.items() if not name.startswith("mtp.")}
    singles = {name: entry for name, entry in main.items() if ".ffn.experts." not in name}
    renamed = {_apply(HF_RULES, name): entry for name, entry in singles.items()}
    layers = sorted({name.split(".ffn.")[0] for name in main if ".ffn.experts." in name})
    for layer in layers:
        for kind, suffix in (("weight", ""), ("scale", "_scale_inv")):
            for stack, parts in (("gate_up_proj", ("w1", "w3")), ("down_proj", ("w2",))):
                names = [
                    f"{layer}.ffn.experts.{expert}.{part}.{kind}"
                    for expert in range(num_experts)
                    for part in parts
                ]
                entry = _stack([main[name] for name in names], len(parts))
                renamed[f"model.{layer}.mlp.experts.{stack}{suffix}"] = entry
    return renamed


def hf_saved_names(tensors: Tensors) -> Tensors:
    """What HF's save_pretrained writes, its kv_norm quirk included; no MTP."""
    rules = (
        (r"^(layers|norm)\b", r"model.\1"),
        (r"^embed\.", "model.embed_tokens."),
        (r"^hc_head_", "model.hc_head.hc_"),
        (r"\.kv_norm\.", ".norm."),
    )
    return {
        _apply(rules, name): entry for name, entry in tensors.items() if not name.startswith("mtp.")
    }


def hf_config(config: dict[str, Any]) -> dict[str, Any]:
    """The config as `transformers` saves it: derived lists in place of ratios and hash layers."""
    kinds = {0: "sliding_attention", 4: "compressed_sparse_attention"}
    layers = config["num_hidden_layers"]
    ratios, hashed = config["compress_ratios"][:layers], config["num_hash_layers"]
    factor = config["qk_rope_head_dim"] / config["head_dim"]
    scaling = {name: value for name, value in config["rope_scaling"].items() if name != "type"}
    main = {"rope_type": "default", "rope_theta": config["rope_theta"]}
    compress = {
        **scaling,
        "rope_type": "yarn",
        "rope_theta": config["compress_rope_theta"],
        "attention_factor": 1.0,
    }
    gone = ("compress_ratios", "num_hash_layers", "qk_rope_head_dim", "rope_scaling", "topk_method")
    return {name: value for name, value in config.items() if name not in gone} | {
        "layer_types": [kinds.get(ratio, "heavily_compressed_attention") for ratio in ratios],
        "mlp_layer_types": ["hash_moe"] * hashed + ["moe"] * (layers - hashed),
        "compress_rates": {"compressed_sparse_attention": 4, "heavily_compressed_attention": 128},
        "rope_parameters": {"main": main, "compress": compress},
        "partial_rotary_factor": factor,
        "transformers_version": "5.23.0",
    }


def ref_config(config: dict[str, Any]) -> dict[str, Any]:
    """The flat config of the released inference code."""
    names = {
        "vocab_size": "vocab_size",
        "dim": "hidden_size",
        "moe_inter_dim": "moe_intermediate_size",
        "n_layers": "num_hidden_layers",
        "n_hash_layers": "num_hash_layers",
        "n_mtp_layers": "num_nextn_predict_layers",
        "n_heads": "num_attention_heads",
        "n_routed_experts": "n_routed_experts",
        "n_shared_experts": "n_shared_experts",
        "n_activated_experts": "num_experts_per_tok",
        "score_func": "scoring_func",
        "route_scale": "routed_scaling_factor",
        "swiglu_limit": "swiglu_limit",
        "q_lora_rank": "q_lora_rank",
        "head_dim": "head_dim",
        "rope_head_dim": "qk_rope_head_dim",
        "norm_eps": "rms_norm_eps",
        "o_groups": "o_groups",
        "o_lora_rank": "o_lora_rank",
        "window_size": "sliding_window",
        "compress_ratios": "compress_ratios",
        "rope_theta": "rope_theta",
        "compress_rope_theta": "compress_rope_theta",
        "index_n_heads": "index_n_heads",
        "index_head_dim": "index_head_dim",
        "index_topk": "index_topk",
        "hc_mult": "hc_mult",
        "hc_sinkhorn_iters": "hc_sinkhorn_iters",
        "hc_eps": "hc_eps",
        "expert_dtype": "expert_dtype",
    }
    scaling = config["rope_scaling"]
    return {ref: config[official] for ref, official in names.items()} | {
        "original_seq_len": scaling["original_max_position_embeddings"],
        "rope_factor": scaling["factor"],
        "beta_fast": scaling["beta_fast"],
        "beta_slow": scaling["beta_slow"],
        "dtype": "fp8",
        "scale_fmt": "ue8m0",
    }


def _apply(rules: tuple[tuple[str, str], ...], name: str) -> str:
    for pattern, target in rules:
        name = re.sub(pattern, target, name)
    return name


def _stack(entries: list[Entry], parts: int) -> Entry:
    rows, columns = entries[0].shape
    shape = (len(entries) // parts, parts * rows, columns)
    return Entry(entries[0].dtype, shape, b"".join(entry.data for entry in entries))
