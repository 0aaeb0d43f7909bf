"""Number formats and roundings of the released code, in torch (specification sections 2.3, 3, 4, 11).

Owns the pieces that several op references share. One code path serves both numerics: values computed in
float32 are handed to `stored`, which rounds to the dtype of the op's boundary, bfloat16 in official
numerics and float32 (no rounding) otherwise; quantisers are applied only where that dtype is bfloat16.
"""

from __future__ import annotations

import torch
from torch import Tensor

FP8_BLOCK, WEIGHT_TILE, FP4_BLOCK, KV_BLOCK = 128, 128, 32, 64
E2M1_MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
E2M1_VALUES = (*E2M1_MAGNITUDES, *(-m for m in E2M1_MAGNITUDES))  # by code; code 8 is -0
E8M0_VALUES = (*(2.0 ** (b - 127) for b in range(255)), float("nan"))  # by byte


def is_official(x: Tensor) -> bool:
    return x.dtype == torch.bfloat16


def stored(value: Tensor, like: Tensor) -> Tensor:
    """Round a float32 value to the boundary dtype of `like`."""
    return value.to(like.dtype)


def rounded(value: Tensor, like: Tensor) -> Tensor:
    """As `stored`, kept in float32: an intermediate that the released code holds as a bf16 tensor."""
    return value.to(like.dtype).float()


def e8m0_from_bytes(scale: Tensor) -> Tensor:
    """E8M0 bytes (int8 bits) -> float32 2^(b-127); float32 scales of some -Base files pass through."""
    if scale.dtype == torch.float32:
        return scale
    return torch.tensor(E8M0_VALUES)[scale.view(torch.uint8).int()]


def e4m3_from_bytes(weight: Tensor) -> Tensor:
    return weight.view(torch.float8_e4m3fn).float()


def dequantise_fp8(weight: Tensor, scale: Tensor) -> Tensor:
    """e4m3 bytes [O, I], tile scales [ceil(O/128), ceil(I/128)] -> float32 [O, I]."""
    full = (
        e8m0_from_bytes(scale).repeat_interleave(WEIGHT_TILE, 0).repeat_interleave(WEIGHT_TILE, 1)
    )
    return e4m3_from_bytes(weight) * full[: weight.shape[0], : weight.shape[1]]


def dequantise_fp4(weight: Tensor, scale: Tensor) -> Tensor:
    """Packed e2m1 bytes [R, C/2] (low nibble = even column), scales [R, C/32] -> float32 [R, C]."""
    code = weight.view(torch.uint8).int()
    value = torch.tensor(E2M1_VALUES)[torch.stack((code & 15, code >> 4), -1).flatten(1)]
    return value * e8m0_from_bytes(scale).repeat_interleave(FP4_BLOCK, 1)


def ceil_log2(x: Tensor) -> Tensor:
    """Exact ceil(log2 x) of positive float32 values."""
    mantissa, exponent = torch.frexp(x)  # x = mantissa · 2^exponent, mantissa in [0.5, 1)
    return exponent - (mantissa == 0.5).int()


def block_scales(x: Tensor, block: int, floor: float, largest: float) -> Tensor:
    """Power-of-two scale of every value's block of `block` along the last axis, shaped like x."""
    width = x.shape[-1]
    padded = torch.nn.functional.pad(x.abs(), (0, -width % block)).unflatten(-1, (-1, block))
    amax = padded.amax(-1, keepdim=True).clamp_min(floor)
    scale = torch.tensor(E8M0_VALUES)[ceil_log2(amax / largest) + 127]  # a table: pow() may round
    return scale.expand(padded.shape).flatten(-2)[..., :width]


def fp8_round_trip(x: Tensor, block: int) -> Tensor:
    """A8(block): quantise to e4m3 with a power-of-two scale per block and back, float32 in and out."""
    scale = block_scales(x, block, 1e-4, 448.0)
    return (x / scale).clamp(-448, 448).to(torch.float8_e4m3fn).float() * scale


def fp4_round_trip(x: Tensor) -> Tensor:
    """A4: quantise to e2m1 with a power-of-two scale per block of 32 and back, float32 in and out."""
    scale = block_scales(x, FP4_BLOCK, 6 * 2.0**-126, 6.0)
    v = (x / scale).clamp(-6, 6)
    step = torch.where(v.abs() < 2, 0.5, torch.where(v.abs() < 4, 1.0, 2.0))
    return torch.round(v / step) * step * scale  # torch.round: halves to even, as e2m1 demands


def quantised_activation(x: Tensor) -> Tensor:
    """The float32 input of a linear: A8(128) in official numerics, itself otherwise."""
    return fp8_round_trip(x.float(), FP8_BLOCK) if is_official(x) else x.float()


def rms(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Float32 root-mean-square norm over the last axis, times the weight."""
    x = x.float()
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight.float()


def rope(x: Tensor, positions: Tensor, freqs: Tensor, *, inverse: bool = False) -> Tensor:
    """Rotate adjacent pairs of the last 2·len(freqs) dims of float32 x [T, ..., d] at positions [T]."""
    r = 2 * len(freqs)
    angle = positions.float()[:, None] * freqs  # a float32 product, as the released code has it
    angle = angle.reshape(len(positions), *[1] * (x.dim() - 2), len(freqs))
    cos, sin = angle.cos(), -angle.sin() if inverse else angle.sin()
    a, b = x[..., -r::2], x[..., -r + 1 :: 2]
    turned = torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2)
    return torch.cat((x[..., :-r], turned), -1)


def hadamard(size: int) -> Tensor:
    """Sylvester's matrix in natural order: H[a, b] = (-1)^popcount(a & b)."""
    h = torch.ones(1, 1)
    while len(h) < size:
        h = torch.cat((torch.cat((h, h), 1), torch.cat((h, -h), 1)), 0)
    return h


def hadamard_fp4(x: Tensor, like: Tensor) -> Tensor:
    """Index queries and keys: Hadamard times size^-0.5, bf16, A4 (cancels in float32, so left out there)."""
    if not is_official(like):
        return x
    size = x.shape[-1]
    return fp4_round_trip(rounded(x @ hadamard(size) * size**-0.5, like))


def rounded_nope(x: Tensor, rope_dims: int, like: Tensor) -> Tensor:
    """Cache rows: A8(64) round trip of all but the roped dims."""
    if not is_official(like):
        return x
    return torch.cat((fp8_round_trip(x[..., :-rope_dims], KV_BLOCK), x[..., -rope_dims:]), -1)


def swiglu(gate: Tensor, up: Tensor, limit: float) -> Tensor:
    """silu(min(gate, limit)) · clamp(up, ±limit), float32."""
    gate = gate.clamp(max=limit)
    return gate * torch.sigmoid(gate) * up.clamp(-limit, limit)
