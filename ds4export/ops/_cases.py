"""Seeded inputs for op cases, shared by every back end's tests and by benchmarks."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from torch import Tensor


class Gen:
    """Random inputs of one case in one numerics; the seed is the case's name."""

    def __init__(self, name: str, *, official: bool) -> None:
        self.official = official
        seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "little")
        self.rng = np.random.default_rng(seed)

    def f32(self, *shape: int) -> Tensor:
        return torch.from_numpy(self.rng.standard_normal(shape, np.float32).reshape(shape))

    def bf16(self, *shape: int) -> Tensor:
        return self.f32(*shape).to(torch.bfloat16)

    def x(self, *shape: int) -> Tensor:
        """A tensor in the dtype of the op boundary."""
        return self.bf16(*shape) if self.official else self.f32(*shape)

    def integers(self, shape: tuple[int, ...], low: int, high: int) -> Tensor:
        return torch.from_numpy(self.rng.integers(low, high, shape, np.int64))

    def ids(self, batch: int, tokens: int, vocabulary: int) -> Tensor:
        return self.integers((batch, tokens), 0, vocabulary)

    def _bytes(self, shape: tuple[int, ...], low: int, high: int) -> Tensor:
        return torch.from_numpy(self.rng.integers(low, high, shape, np.uint8).view(np.int8))

    def scales(self, *shape: int) -> Tensor:
        """E8M0 bytes of 2^-10 .. 2^-7: they differ, so that a wrong scale index shows."""
        return self._bytes(shape, 117, 121)

    def fp8(self, outputs: int, inputs: int) -> tuple[Tensor, Tensor]:
        """e4m3 bytes [O, I] without NaN codes and their tile scales."""
        magnitude, sign = (
            self.rng.integers(0, 120, (outputs, inputs)),
            self.rng.integers(0, 2, (outputs, inputs)),
        )
        codes = (magnitude + 128 * sign).astype(np.uint8).view(np.int8)
        return torch.from_numpy(codes), self.scales(-(-outputs // 128), -(-inputs // 128))

    def fp4_run(self, experts: int, inner: int, hidden: int) -> tuple[Tensor, Tensor]:
        """The packed weights and scales of a layer's experts as one run: [E, 3, bytes]."""
        weights = self._bytes((experts, 3, inner * hidden // 2), 0, 256)
        return weights, self.scales(experts, 3, inner * hidden // 32) + 2

    def fp8_run(self, experts: int, inner: int, hidden: int) -> tuple[Tensor, Tensor]:
        tiles = -(-inner // 128) * -(-hidden // 128)
        codes, _ = self.fp8(experts * 3, inner * hidden)
        return codes.reshape(experts, 3, inner * hidden), self.scales(experts, 3, tiles)

    def freqs(self, rope_dims: int) -> Tensor:
        return 10000.0 ** -(torch.arange(0, rope_dims, 2, dtype=torch.float32) / rope_dims)

    def state(self, slots: int, rows: int, width: int, *, f32: bool = False) -> Tensor:
        return self.f32(slots, rows, width) if f32 else self.x(slots, rows, width)
