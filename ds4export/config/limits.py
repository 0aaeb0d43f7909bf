"""What each field of a config may hold, alone and together with others.

Owns ranges and relations. Upper limits are generous, but they keep a damaged config from asking
for millions of tensor names before any weight is seen.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from ds4export.config.strict_json import short
from ds4export.errors import ConfigError, UnsupportedModelError

if TYPE_CHECKING:
    from ds4export.config.model_config import ModelConfig

RATIOS = (0, 4, 128)
EXPERT_DTYPES = ("fp4", "fp8")
FP4_GROUP = 32
KV_BLOCK = 64
BIG = (1 << 31) - 1

INTS: dict[str, tuple[int, int]] = {
    "vocab_size": (1, BIG),
    "hidden_size": (1, 1 << 20),
    "num_hidden_layers": (1, 256),
    "num_attention_heads": (1, 4096),
    "head_dim": (1, 1 << 16),
    "qk_rope_head_dim": (2, 1 << 16),
    "q_lora_rank": (1, 1 << 20),
    "o_groups": (1, 4096),
    "o_lora_rank": (1, 1 << 20),
    "n_routed_experts": (1, 1024),
    "num_experts_per_tok": (1, 1024),
    "moe_intermediate_size": (1, 1 << 20),
    "n_shared_experts": (1, 1),
    "num_hash_layers": (0, 256),
    "sliding_window": (1, BIG),
    "index_n_heads": (1, 4096),
    "index_head_dim": (1, 1 << 16),
    "index_topk": (1, BIG),
    "hc_mult": (1, 16),
    "hc_sinkhorn_iters": (1, 1000),
    "max_position_embeddings": (1, BIG),
    "num_nextn_predict_layers": (0, 8),
    "bos_token_id": (0, BIG),
    "eos_token_id": (0, BIG),
}
FLOATS = (
    "routed_scaling_factor",
    "hc_eps",
    "rms_norm_eps",
    "rope_theta",
    "compress_rope_theta",
    "swiglu_limit",
)


def check_config(config: ModelConfig) -> None:
    """Refuse any config whose shapes or maths cannot exist."""
    for name, (low, high) in INTS.items():
        check_int(name, getattr(config, name), low, high)
    for name in FLOATS:
        check_positive(name, getattr(config, name))
    _check_rope(config)
    _check_ratios(config)
    _check_divisions(config)
    _check_orders(config)
    if config.expert_dtype is not None and config.expert_dtype not in EXPERT_DTYPES:
        raise UnsupportedModelError(
            "`expert_dtype` is not supported",
            found=short(config.expert_dtype),
            expected=" or ".join(map(repr, EXPERT_DTYPES)),
        )


def check_int(name: str, value: Any, low: int, high: int) -> None:
    """An exact int (no bool, no float) within limits."""
    expected = f"an integer from {low} to {high}" if low < high else str(low)
    if type(value) is not int:
        raise ConfigError(f"`{name}` is not an integer", found=short(value), expected=expected)
    if not low <= value <= high:
        raise ConfigError(f"`{name}` is out of range", found=short(value), expected=expected)


def check_positive(name: str, value: Any) -> None:
    """A finite number above zero that a float can hold."""
    if type(value) not in (int, float) or not 0 < value <= 1e300 or not math.isfinite(value):
        raise ConfigError(
            f"`{name}` is not a positive number", found=short(value), expected="a number above 0"
        )


def _check_rope(config: ModelConfig) -> None:
    scaling = config.rope_scaling
    check_int(
        "rope_scaling.original_max_position_embeddings",
        scaling.original_max_position_embeddings,
        1,
        BIG,
    )
    for name in ("factor", "beta_fast", "beta_slow"):
        check_positive(f"rope_scaling.{name}", getattr(scaling, name))
    if scaling.beta_fast <= scaling.beta_slow:
        raise ConfigError(
            "`rope_scaling.beta_fast` is not above `beta_slow`",
            found=f"{scaling.beta_fast} and {scaling.beta_slow}",
            expected="beta_fast > beta_slow",
        )
    for name in ("rope_theta", "compress_rope_theta"):
        if getattr(config, name) <= 1:
            raise ConfigError(
                f"`{name}` is out of range", found=getattr(config, name), expected="above 1"
            )


def _check_ratios(config: ModelConfig) -> None:
    ratios, layers = config.compress_ratios, config.num_hidden_layers
    for index, ratio in enumerate(ratios):
        if type(ratio) is not int or ratio not in RATIOS:
            raise UnsupportedModelError(
                f"entry {index} of `compress_ratios` is not supported",
                found=short(ratio),
                expected="0 (window), 4 (CSA) or 128 (HCA)",
            )
    wanted = layers + config.num_nextn_predict_layers
    if len(ratios) != wanted:
        raise ConfigError(
            "`compress_ratios` has the wrong length",
            found=f"{len(ratios)} entries",
            expected=f"{wanted}: one per layer ({layers}) and per MTP block"
            f" ({config.num_nextn_predict_layers})",
        )
    if any(ratios[layers:]):
        raise UnsupportedModelError(
            "the MTP block compresses its cache",
            found=f"compress_ratios ends in {list(ratios[layers:])}",
            expected="0, window attention only",
        )


def _check_divisions(config: ModelConfig) -> None:
    nope = config.head_dim - config.qk_rope_head_dim
    for what, value, divisor in (
        ("`hidden_size`", config.hidden_size, FP4_GROUP),
        ("`moe_intermediate_size`", config.moe_intermediate_size, FP4_GROUP),
        ("`qk_rope_head_dim`", config.qk_rope_head_dim, 2),
        ("`head_dim` - `qk_rope_head_dim`", nope, KV_BLOCK),
        ("`num_attention_heads`", config.num_attention_heads, config.o_groups),
        ("`index_head_dim`", config.index_head_dim, FP4_GROUP),
    ):
        if value % divisor:
            raise ConfigError(
                f"{what} does not divide evenly",
                found=value,
                expected=f"a multiple of {divisor}",
            )
    if config.index_head_dim & (config.index_head_dim - 1):
        raise ConfigError(
            "`index_head_dim` is not a power of two, which the Hadamard transform needs",
            found=config.index_head_dim,
            expected="64, 128, 256, …",
        )


def _check_orders(config: ModelConfig) -> None:
    for small, large, strict in (
        ("qk_rope_head_dim", "head_dim", True),
        ("qk_rope_head_dim", "index_head_dim", False),
        ("num_experts_per_tok", "n_routed_experts", False),
        ("num_hash_layers", "num_hidden_layers", False),
        ("bos_token_id", "vocab_size", True),
        ("eos_token_id", "vocab_size", True),
    ):
        low, high = getattr(config, small), getattr(config, large)
        if low > high or (strict and low == high):
            raise ConfigError(
                f"`{small}` is too large for `{large}`",
                found=f"{low} and {high}",
                expected=f"{small} {'<' if strict else '<='} {large}",
            )
