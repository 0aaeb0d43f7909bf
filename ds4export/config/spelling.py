"""Three spellings of one config, brought to the official one.

Owns names only, no ranges: values pass through as they are and are checked afterwards. REF is the
flat file of the released inference code, HF what `transformers` saves (derived lists in place of
`compress_ratios` and `num_hash_layers`, a two-part `rope_parameters`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeGuard

from ds4export.config.limits import BIG, INTS
from ds4export.config.strict_json import short
from ds4export.errors import ConfigError, UnsupportedModelError

REF_NAMES = {
    "dim": "hidden_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "rope_head_dim": "qk_rope_head_dim",
    "moe_inter_dim": "moe_intermediate_size",
    "n_activated_experts": "num_experts_per_tok",
    "score_func": "scoring_func",
    "route_scale": "routed_scaling_factor",
    "n_hash_layers": "num_hash_layers",
    "window_size": "sliding_window",
    "norm_eps": "rms_norm_eps",
    "n_mtp_layers": "num_nextn_predict_layers",
}
REF_ROPE_NAMES = {
    "rope_factor": "factor",
    "original_seq_len": "original_max_position_embeddings",
    "beta_fast": "beta_fast",
    "beta_slow": "beta_slow",
}
HF_RATIOS = {
    "sliding_attention": 0,
    "compressed_sparse_attention": 4,
    "heavily_compressed_attention": 128,
}


def official_spelling(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The same config under official names; fields it does not know stay as they are."""
    if "dim" in raw and "n_layers" in raw:
        return _official_from_ref(raw)
    if "model_type" not in raw:
        raise ConfigError(
            "the config does not say which model it is",
            found="no `model_type`",
            expected="model_type 'deepseek_v4'",
            hint="use the config.json that ships with the weights",
        )
    return _official_from_hf(raw)


def _official_from_ref(raw: Mapping[str, Any]) -> dict[str, Any]:
    official = {REF_NAMES.get(name, name): value for name, value in raw.items()}
    scaling = {name: raw[ref] for ref, name in REF_ROPE_NAMES.items() if ref in raw}
    # The flat file has no token ids and no trained length; the release fixes them.
    defaults = {"bos_token_id": 0, "eos_token_id": 1, "n_shared_experts": 1}
    factor, length = raw.get("rope_factor"), raw.get("original_seq_len")
    if _is_within(factor, BIG) and _is_within(length, BIG):
        defaults["max_position_embeddings"] = min(int(factor * length), BIG)
    return {**defaults, **official, "rope_scaling": scaling}


def _official_from_hf(raw: Mapping[str, Any]) -> dict[str, Any]:
    official = dict(raw)
    if "compress_ratios" not in raw and "layer_types" in raw:
        official["compress_ratios"] = _ratios_from_layer_types(raw)
    if "num_hash_layers" not in raw and "mlp_layer_types" in raw:
        official["num_hash_layers"] = _hash_layers_from_types(raw["mlp_layer_types"])
    if not raw.get("rope_scaling") and "rope_parameters" in raw:
        official.update(_rope_from_parameters(raw["rope_parameters"]))
    if "qk_rope_head_dim" not in raw and "partial_rotary_factor" in raw:
        official["qk_rope_head_dim"] = _rope_dim_from_factor(raw)
    return official


def _ratios_from_layer_types(raw: Mapping[str, Any]) -> list[int]:
    types, rates = raw["layer_types"], raw.get("compress_rates")
    kinds: list[Any] = types if isinstance(types, list) else [None]
    if not all(isinstance(kind, str) and kind in HF_RATIOS for kind in kinds):
        raise ConfigError(
            "`layer_types` names an unknown kind of layer",
            found=short(types),
            expected=", ".join(HF_RATIOS),
        )
    released = {kind: ratio for kind, ratio in HF_RATIOS.items() if ratio}
    if rates is not None and rates != released:
        raise UnsupportedModelError(
            "`compress_rates` is not that of a released model",
            found=short(rates),
            expected=released,
        )
    # HF cuts the MTP entries off; the released MTP block is window-only, ratio 0.
    nextn = raw.get("num_nextn_predict_layers", 0)
    most = INTS["num_nextn_predict_layers"][1]
    blocks = nextn if type(nextn) is int and 0 <= nextn <= most else 0
    return [HF_RATIOS[kind] for kind in kinds] + [0] * blocks


def _hash_layers_from_types(types: Any) -> int:
    kinds = types if isinstance(types, list) else []
    hashed = kinds.count("hash_moe")
    if not kinds or kinds != ["hash_moe"] * hashed + ["moe"] * (len(kinds) - hashed):
        raise ConfigError(
            "`mlp_layer_types` is not hash layers first, scored layers after",
            found=short(types),
            expected="'hash_moe' …, then 'moe' …",
        )
    return hashed


def _rope_from_parameters(rope: Any) -> dict[str, Any]:
    main, compress = (
        (rope.get("main"), rope.get("compress")) if isinstance(rope, Mapping) else (None, None)
    )
    if not isinstance(main, Mapping) or not isinstance(compress, Mapping):
        raise ConfigError(
            "`rope_parameters` lacks its two halves",
            found=short(rope),
            expected="{'main': {…}, 'compress': {…}}",
        )
    thetas = {
        name: half["rope_theta"]
        for name, half in (("rope_theta", main), ("compress_rope_theta", compress))
        if "rope_theta" in half
    }
    return {**thetas, "rope_scaling": compress}


def _rope_dim_from_factor(raw: Mapping[str, Any]) -> Any:
    factor, head_dim = raw["partial_rotary_factor"], raw.get("head_dim")
    if _is_within(factor, 1) and _is_within(head_dim, BIG):
        return int(head_dim * factor)
    raise ConfigError(
        "`partial_rotary_factor` is not a share of `head_dim`",
        found=f"{short(factor)} of {short(head_dim)}",
        expected="above 0, at most 1",
    )


def _is_within(value: Any, high: int) -> TypeGuard[int | float]:
    return type(value) in (int, float) and 0 < value <= high
