"""Rotation of adjacent pairs, in torch and as ONNX nodes, up to the last position of the model."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from ds4export.ops import _body_numerics as nodes
from ds4export.ops import _numerics as numerics
from ds4export.ops._body import T
from tests.kit.compare import assert_close, assert_equal
from tests.kit.ops import FLOAT32, run_nodes

LAST = 1_048_575
ANGLE_ERROR = 2e-7  # of sine and cosine, one unit in the last place of float32


def frequencies(theta: float = 10_000.0, dims: int = 64) -> Tensor:
    return 1.0 / theta ** (torch.arange(0, dims, 2, dtype=torch.float32) / dims)


def rotated(x: Tensor, positions: Tensor, freqs: Tensor, sign: int = 1) -> Tensor:
    """x [T, H, d]: complex numbers, float64 but for the angle, which is a float32 product."""
    r = 2 * len(freqs)
    angle = positions.numpy().astype(np.float32)[:, None] * freqs.numpy()
    turn = np.exp(sign * 1j * angle.astype(np.float64))[:, None]
    pairs = x[..., -r:].double().numpy()
    turned = (pairs[..., 0::2] + 1j * pairs[..., 1::2]) * turn
    out = x.double().clone()
    out[..., -r::2], out[..., -r + 1 :: 2] = (
        torch.from_numpy(np.ascontiguousarray(part)) for part in (turned.real, turned.imag)
    )
    return out.float()


def by_nodes(x: Tensor, positions: Tensor, freqs: Tensor, *, inverse: bool = False) -> Tensor:
    def build(x: T, positions: T, freqs: T) -> T:
        return nodes.rope(x, positions, freqs, inverse=inverse)

    inputs = {"x": x[None], "positions": positions[None], "freqs": freqs}
    return run_nodes(build, inputs, x[None], FLOAT32)[0]


@pytest.mark.parametrize("theta", [10_000.0, 160_000.0])
@pytest.mark.parametrize("first", [0, 1, 65_535, 1_000_003, LAST - 6])
def test_rotation(first: int, theta: float, rng: np.random.Generator) -> None:
    x = torch.from_numpy(rng.standard_normal((7, 3, 80)).astype(np.float32))
    positions, freqs = torch.arange(first, first + 7), frequencies(theta)
    for inverse, sign in ((False, 1), (True, -1)):
        want = rotated(x, positions, freqs, sign)
        here = numerics.rope(x, positions, freqs, inverse=inverse)
        there = by_nodes(x, positions, freqs, inverse=inverse)
        assert_equal(here[..., :16], x[..., :16], "dims that do not turn")
        assert_equal(there[..., :16], x[..., :16], "dims that do not turn")
        assert_close(here, want, relative=ANGLE_ERROR, what="torch")
        assert_close(there, want, relative=ANGLE_ERROR, what="nodes")


def test_position_zero_is_the_identity(rng: np.random.Generator) -> None:
    x = torch.from_numpy(rng.standard_normal((1, 2, 64)).astype(np.float32))
    zero, freqs = torch.tensor([0]), frequencies()
    assert_equal(numerics.rope(x, zero, freqs), x)
    assert_equal(by_nodes(x, zero, freqs), x)


def test_inverse_undoes_the_rotation(rng: np.random.Generator) -> None:
    x = torch.from_numpy(rng.standard_normal((5, 2, 96)).astype(np.float32))
    positions, freqs = torch.tensor([0, 3, 77, 500_000, LAST]), frequencies()
    there = numerics.rope(x, positions, freqs)
    back = numerics.rope(there, positions, freqs, inverse=True)
    assert_close(back, x, relative=ANGLE_ERROR)


def test_angle_is_a_float32_product() -> None:
    """A float64 angle turns a pair by up to 0.03 rad more at the last position."""
    freqs = frequencies(160_000.0)
    x = torch.zeros(1, 1, 64)
    x[..., ::2] = 1
    got = numerics.rope(x, torch.tensor([LAST]), freqs)[0, 0].double()
    exact = LAST * freqs.double()
    turned_more = torch.atan2(got[1::2], got[::2]) - torch.atan2(exact.sin(), exact.cos())
    turned_more = torch.remainder(turned_more + torch.pi, 2 * torch.pi) - torch.pi
    assert 5e-3 < turned_more.abs().max() < 0.04
