"""Rotary frequencies: plain for window layers and MTP, YaRN for layers that compress.

Computed once on the host in float32, exactly as the released code does: at position 10^6 one unit in the last place
of a frequency already turns a pair by 0.06 rad. Specification section 4.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ds4export.config import ModelConfig


def plain_freqs(config: ModelConfig) -> Tensor:
    """float32 [qk_rope_head_dim / 2] with rope_theta and no scaling."""
    return _freqs(config.qk_rope_head_dim, config.rope_theta)


def yarn_freqs(config: ModelConfig) -> Tensor:
    """float32 [qk_rope_head_dim / 2] with compress_rope_theta and the YaRN ramp."""
    r, theta, scaling = config.qk_rope_head_dim, config.compress_rope_theta, config.rope_scaling

    def dim_of(rotations: float) -> float:
        length = scaling.original_max_position_embeddings
        return r * math.log(length / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    low = max(math.floor(dim_of(scaling.beta_fast)), 0)
    high: float = min(math.ceil(dim_of(scaling.beta_slow)), r - 1)
    if low == high:
        high += 0.001
    freqs = _freqs(r, theta)
    ramp = ((torch.arange(r // 2, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    return freqs * (1 - ramp) + freqs / scaling.factor * ramp


def _freqs(rope_dims: int, theta: float) -> Tensor:
    return 1.0 / (theta ** (torch.arange(0, rope_dims, 2, dtype=torch.float32) / rope_dims))


def layer_freqs(config: ModelConfig, ratio: int) -> Tensor:
    """Which of the two a layer of that compression ratio uses."""
    return yarn_freqs(config) if ratio else plain_freqs(config)
