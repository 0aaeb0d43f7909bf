"""Number formats of the checkpoint and of official activations, as straight-through roundings.

Every rounding here returns float32 values that the format can hold. Gradients pass unchanged: the
scales cover the largest magnitude, so nothing saturates and the identity is the honest surrogate.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

FP8_MAX = 448.0
FP4_MAX = 6.0
TILE = 128


class _Straight(torch.autograd.Function):
    """Rounds forward, passes the gradient through."""

    @staticmethod
    def forward(ctx, x, rounding):
        return rounding(x)

    @staticmethod
    def backward(ctx, grad):
        return grad, None


def straight_through(x: Tensor, rounding) -> Tensor:
    """Apply `rounding` with an identity gradient."""
    return _Straight.apply(x, rounding)


def power_of_two_scale(amax: Tensor, top: float) -> Tensor:
    """Smallest power of two s with amax / s <= top; exact, no logarithm."""
    mantissa, exponent = torch.frexp(amax / top)
    return torch.ldexp(torch.ones_like(amax), exponent - (mantissa == 0.5).to(exponent.dtype))


def round_e4m3(x: Tensor) -> Tensor:
    """Nearest e4m3 value, ties to even."""
    return x.to(torch.float8_e4m3fn).to(x.dtype)


def round_e2m1(x: Tensor) -> Tensor:
    """Nearest of 0, .5, 1, 1.5, 2, 3, 4, 6 with sign; ties to even."""
    magnitude = x.abs()
    step = torch.where(magnitude < 2, 0.5, torch.where(magnitude < 4, 1.0, 2.0))
    return torch.copysign((torch.round(magnitude / step) * step).clamp_max(FP4_MAX), x)


def fp8_tiles(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Split [.., out, in] into scaled values and one scale per 128 x 128 tile."""
    rows, cols = weight.shape[-2:]
    padded = pad(weight, (0, -cols % TILE, 0, -rows % TILE))
    tiles = padded.unflatten(-1, (-1, TILE)).unflatten(-3, (-1, TILE))  # [.., R, 128, C, 128]
    amax = tiles.abs().amax((-3, -1)).clamp_min(1e-4)
    scale = power_of_two_scale(amax, FP8_MAX)
    spread = scale.repeat_interleave(TILE, -2).repeat_interleave(TILE, -1)[..., :rows, :cols]
    return weight / spread, scale


def fp8_weight(weight: Tensor) -> Tensor:
    """Values an FP8 linear keeps on disk."""
    scaled, scale = fp8_tiles(weight)
    rows, cols = weight.shape[-2:]
    spread = scale.repeat_interleave(TILE, -2).repeat_interleave(TILE, -1)[..., :rows, :cols]
    return round_e4m3(scaled) * spread


def fp4_blocks(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Split the last axis into blocks of 32: e2m1 values [.., n, 32] and scales [.., n]."""
    blocks = weight.unflatten(-1, (-1, 32))
    scale = power_of_two_scale(blocks.abs().amax(-1).clamp_min(FP4_MAX * 2.0**-126), FP4_MAX)
    return round_e2m1(blocks / scale[..., None]), scale


def fp4_round(x: Tensor) -> Tensor:
    """Round trip through FP4 with a scale per 32: expert weights, index queries and keys."""
    value, scale = fp4_blocks(x)
    return (value * scale[..., None]).flatten(-2)


def fp8_round(x: Tensor, block: int) -> Tensor:
    """Round trip of activations through e4m3 with a scale per `block` of the last axis."""
    width = x.shape[-1]
    block = min(block, width)
    blocks = pad(x, (0, -width % block)).unflatten(-1, (-1, block))
    amax = torch.linalg.vector_norm(blocks, float("inf"), -1, keepdim=True).clamp_min(1e-4)
    scale = power_of_two_scale(amax, FP8_MAX)
    return (round_e4m3(blocks / scale) * scale).flatten(-2)[..., :width]


def bf16_round(x: Tensor) -> Tensor:
    """Nearest bfloat16 value."""
    return x.to(torch.bfloat16).to(x.dtype)
