"""Weights as modules: their buffers carry the checkpoint's names, their forward is one `ds4` op."""

from __future__ import annotations

import torch
from torch import Tensor, nn

ds4 = torch.ops.ds4
TILE = 128


def tiles(size: int) -> int:
    """Scale tiles along an axis of that size."""
    return -(-size // TILE)


class Weights(nn.Module):
    """A module whose weights are buffers on the meta device until `load_weights` binds the mapped bytes."""

    def weight_buffer(self, name: str, *shape: int, dtype: torch.dtype) -> None:
        self.register_buffer(name, torch.empty(shape, dtype=dtype, device="meta"))


class Norm(Weights):
    """RMS norm of the last axis; `weight` bf16 [width]."""

    weight: Tensor

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight_buffer("weight", width, dtype=torch.bfloat16)

    def forward(self, x: Tensor) -> Tensor:
        return ds4.rms_norm(x, self.weight, self.eps)


class LinearFp8(Weights):
    """`weight` e4m3 bytes [out, in] with 128×128 tile scales (`float_scales`: float32 instead of E8M0 bytes)."""

    weight: Tensor
    scale: Tensor

    def __init__(self, outputs: int, inputs: int, *, float_scales: bool) -> None:
        super().__init__()
        self.weight_buffer("weight", outputs, inputs, dtype=torch.int8)
        scale = torch.float32 if float_scales else torch.int8
        self.weight_buffer("scale", tiles(outputs), tiles(inputs), dtype=scale)

    def forward(self, x: Tensor) -> Tensor:
        return ds4.linear_fp8(x, self.weight, self.scale)


class GroupedLinearFp8(LinearFp8):
    """wo_a: one matrix per group of heads, stacked along the outputs."""

    def __init__(self, outputs: int, inputs: int, groups: int, *, float_scales: bool) -> None:
        super().__init__(outputs, inputs, float_scales=float_scales)
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        return ds4.grouped_linear(x, self.weight, self.scale, self.groups)


class LinearBf16(Weights):
    """`weight` bf16 [out, in]."""

    weight: Tensor

    def __init__(self, outputs: int, inputs: int) -> None:
        super().__init__()
        self.weight_buffer("weight", outputs, inputs, dtype=torch.bfloat16)

    def forward(self, x: Tensor) -> Tensor:
        return ds4.linear_bf16(x, self.weight)
