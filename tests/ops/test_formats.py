"""Number formats and quantisers, in torch and as ONNX nodes, against code that shares nothing with either."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from ds4export.ops import _body_numerics as nodes
from ds4export.ops import _numerics as numerics
from ds4export.ops._body import T
from tests.kit.compare import assert_equal
from tests.kit.ops import OFFICIAL, run_nodes

F32 = NDArray[np.float32]
ALL_BYTES = torch.arange(256, dtype=torch.uint8).view(torch.int8)
# block, smallest amax, largest code: of A8 for linears, A8 for cache rows, A4 for index keys
A8, KV, A4 = (128, 1e-4, 448.0), (64, 1e-4, 448.0), (32, 6 * 2.0**-126, 6.0)
QUANTISERS = pytest.mark.parametrize("quantiser", [A8, KV, A4], ids=("A8", "KV", "A4"))


def decoded(dtype: str) -> F32:
    """What ml_dtypes makes of all 256 bytes."""
    return np.arange(256, dtype=np.uint8).view(dtype).astype(np.float32)


def positive_bf16() -> Tensor:
    """Every finite positive bf16 value, subnormal ones included."""
    return torch.arange(1, 0x7F80, dtype=torch.int16).view(torch.bfloat16)


def exponent_by_bits(amax: F32, largest: float) -> NDArray[np.int64]:
    """The released code's ceil(log2(amax/largest)): exponent bits, plus one for any mantissa bit."""
    bits = (amax * np.float32(1 / largest)).view(np.uint32).astype(np.int64)
    return (bits >> 23) - 127 + ((bits & 0x7FFFFF) != 0)


def round_trip(x: Tensor, quantiser: tuple[int, float, float]) -> Tensor:
    """Quantise and back by ml_dtypes' own rounding, float64 in between; float32 [..., blocks·block]."""
    block, floor, largest = quantiser
    code = ml_dtypes.float4_e2m1fn if largest == 6 else ml_dtypes.float8_e4m3fn
    blocks = x.float().numpy().reshape(-1, block)
    amax = np.maximum(np.abs(blocks).max(-1, keepdims=True), np.float32(floor))
    scale = np.ldexp(1.0, exponent_by_bits(amax, largest))
    codes = (blocks.astype(np.float64) / scale).astype(np.float32).astype(code)
    back = codes.astype(np.float64) * scale
    with np.errstate(over="ignore"):  # next to the end of float32 a code rounds up to infinity
        return torch.from_numpy(back.astype(np.float32)).reshape(x.shape)


def by_torch(x: Tensor, quantiser: tuple[int, float, float]) -> Tensor:
    if quantiser is A4:
        return numerics.fp4_round_trip(x)
    return numerics.fp8_round_trip(x, quantiser[0])


def by_nodes(x: Tensor, quantiser: tuple[int, float, float]) -> Tensor:
    def build(x: T) -> T:
        return nodes.fp4_round_trip(x) if quantiser is A4 else nodes.fp8_round_trip(x, quantiser[0])

    return run_nodes(build, {"x": x}, x)


def assert_quantised(x: Tensor, quantiser: tuple[int, float, float]) -> Tensor:
    """Both implementations give exactly what the independent one gives."""
    want = round_trip(x, quantiser)
    assert_equal(by_torch(x, quantiser), want, "torch")
    assert_equal(by_nodes(x, quantiser), want, "nodes")
    return want


def matrix_of_fp4(weight: Tensor, scale: Tensor) -> Tensor:
    """The body multiplies as it decodes: the product with the identity is the matrix."""
    rows, columns = weight.shape[0], 2 * weight.shape[1]

    def build(x: T, w: T, s: T) -> T:
        return nodes.linear_fp4(x, w, s, w.body.ints(rows))

    inputs = {"x": torch.eye(columns), "w": weight, "s": scale}
    return run_nodes(build, inputs, torch.empty(columns, rows)).T


def test_e4m3_decodes_every_byte() -> None:
    want = torch.from_numpy(decoded("float8_e4m3fn"))
    assert int(want.isnan().sum()) == 2
    assert_equal(numerics.e4m3_from_bytes(ALL_BYTES), want, "torch")
    assert_equal(torch.tensor(nodes.E4M3_VALUES), want, "table")
    got = run_nodes(lambda x: nodes.from_bytes(x, nodes.E4M3_VALUES), {"x": ALL_BYTES}, want)
    assert_equal(got, want, "nodes")


def test_e8m0_decodes_every_byte() -> None:
    want = torch.from_numpy(decoded("float8_e8m0fnu"))
    assert want[0] == 2.0**-127
    assert want[255].isnan()
    assert_equal(numerics.e8m0_from_bytes(ALL_BYTES), want, "torch")
    got = run_nodes(lambda x: nodes.scale_values(x), {"x": ALL_BYTES}, want)
    assert_equal(got, want, "nodes")


def test_e2m1_decodes_every_byte_low_nibble_first() -> None:
    codes = np.arange(256, dtype=np.uint8)
    nibbles = np.stack((codes & 15, codes >> 4), -1).view("float4_e2m1fn").astype(np.float32)
    want = torch.from_numpy(nibbles.reshape(1, 512))
    one = torch.full((1, 16), 127, dtype=torch.int8)
    packed = ALL_BYTES.reshape(1, 256)
    assert_equal(numerics.dequantise_fp4(packed, one), want, "torch")

    assert_equal(matrix_of_fp4(packed, one), want, "nodes")
    assert math.copysign(1, numerics.dequantise_fp4(packed, one)[0, 16]) == -1, "code 8 is -0"


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (128, 128), (130, 257), (300, 128), (5, 40)])
def test_fp8_tiles_scale_their_own_values(
    rows: int, columns: int, rng: np.random.Generator
) -> None:
    codes = rng.integers(0, 127, (rows, columns), np.uint8)
    scales = rng.integers(100, 150, (-(-rows // 128), -(-columns // 128)), np.uint8)
    value = codes.view("float8_e4m3fn").astype(np.float32)
    want = torch.from_numpy(
        np.array(
            [
                [
                    value[i, j] * 2.0 ** (int(scales[i // 128, j // 128]) - 127)
                    for j in range(columns)
                ]
                for i in range(rows)
            ],
            np.float32,
        )
    )
    weight, scale = (torch.from_numpy(a.view(np.int8)) for a in (codes, scales))
    assert_equal(numerics.dequantise_fp8(weight, scale), want, "torch")
    inputs = {"x": torch.eye(columns), "weight": weight, "scale": scale}
    got = run_nodes(nodes.linear_fp8, inputs, want.T.contiguous()).T
    assert_equal(got, want, "nodes")


def test_fp4_blocks_scale_their_own_columns(rng: np.random.Generator) -> None:
    codes = rng.integers(0, 256, (6, 48), np.uint8)
    scales = rng.integers(100, 150, (6, 3), np.uint8)
    want = np.empty((6, 96), np.float32)
    for i in range(6):
        for j in range(96):
            nibble = codes[i, j // 2] >> 4 if j % 2 else codes[i, j // 2] & 15
            magnitude = (0, 0.5, 1, 1.5, 2, 3, 4, 6)[nibble & 7]
            want[i, j] = (
                (-1.0 if nibble & 8 else 1.0) * magnitude * 2.0 ** (int(scales[i, j // 32]) - 127)
            )
    weight, scale = (torch.from_numpy(a.view(np.int8)) for a in (codes, scales))
    expected = torch.from_numpy(want)
    assert_equal(numerics.dequantise_fp4(weight, scale), expected, "torch")
    assert_equal(matrix_of_fp4(weight, scale), expected, "nodes")


def test_weights_fit_bf16_without_loss() -> None:
    for values in (decoded("float8_e4m3fn"), np.array(numerics.E2M1_VALUES, np.float32)):
        for exponent in (-40, -9, 0, 17, 60):
            scaled = torch.from_numpy(values * np.float32(2.0**exponent))
            assert_equal(scaled.to(torch.bfloat16).float(), scaled)


def test_ceil_log2_on_powers_and_their_neighbours() -> None:
    exponents = torch.arange(-149, 128)
    powers = torch.from_numpy(np.ldexp(np.float32(1), exponents.numpy()))
    assert torch.equal(numerics.ceil_log2(powers).long(), exponents)
    normal = powers[exponents >= -126]
    infinity = torch.tensor(math.inf)
    above, below = torch.nextafter(normal, infinity), torch.nextafter(normal, -infinity)
    assert torch.equal(numerics.ceil_log2(above).long(), exponents[exponents >= -126] + 1)
    assert torch.equal(numerics.ceil_log2(below[1:]).long(), exponents[exponents >= -126][1:])


def test_power_of_two_scale_on_powers_and_their_neighbours() -> None:
    """As nodes a logarithm guesses the exponent: its guess may not survive where it is wrong."""
    powers = torch.from_numpy(np.ldexp(np.float32(1), np.arange(-125, 126)))
    infinity = torch.tensor(math.inf)
    around = torch.cat([powers, *(torch.nextafter(powers, s * infinity) for s in (1, -1))])
    want = torch.from_numpy(np.ldexp(np.float32(1), numerics.ceil_log2(around).numpy()))
    got = run_nodes(lambda x: nodes.power_of_two_scale(x, 1.0), {"x": around}, want)
    assert_equal(got, want, "scale")


@QUANTISERS
def test_scales_of_every_bf16_amax(quantiser: tuple[int, float, float]) -> None:
    """Division, comparison and the released code's bit trick agree on all 32,639 positive values."""
    block, floor, largest = quantiser
    amax = positive_bf16().float()
    floored = amax.clamp_min(floor)
    want = torch.from_numpy(np.ldexp(1.0, exponent_by_bits(floored.numpy(), largest))).float()
    assert_equal(numerics.block_scales(amax[:, None], block, floor, largest)[:, 0], want, "torch")
    got = run_nodes(lambda x: nodes.power_of_two_scale(x, largest), {"x": floored}, want)
    assert_equal(got, want, "nodes")


@QUANTISERS
def test_round_trip_of_every_bf16_value(quantiser: tuple[int, float, float]) -> None:
    """Each value beside others of its own size, of both signs."""
    values = torch.cat((positive_bf16(), -positive_bf16())).float()
    padded = torch.nn.functional.pad(values, (0, -len(values) % 128)).reshape(-1, 128)
    assert_quantised(padded, quantiser)


@QUANTISERS
def test_round_trip_of_100_000_values(
    quantiser: tuple[int, float, float], rng: np.random.Generator
) -> None:
    """Normal values of every magnitude, spread inside a block as well, with zeros and subnormals."""
    gains = 10.0 ** rng.uniform(-38, 36, (800, 1))
    spread = 2.0 ** rng.integers(-20, 1, (800, 128))
    values = rng.standard_normal((800, 128)) * gains * spread
    values[rng.random((800, 128)) < 0.05] = 0
    values[:5], values[5:10] = 0, rng.standard_normal((5, 128)) * 1e-40
    x = torch.from_numpy(np.clip(values, -3e38, 3e38)).to(torch.bfloat16).float()
    assert_quantised(x, quantiser)
    assert_quantised(x.reshape(2, -1, 4, 128), quantiser)


@QUANTISERS
def test_round_trip_of_ties(quantiser: tuple[int, float, float]) -> None:
    """Midpoints of all neighbouring codes go to the even one; just off them, to the nearer one."""
    block, _, largest = quantiser
    name = "float4_e2m1fn" if largest == 6 else "float8_e4m3fn"
    codes = np.arange(8 if largest == 6 else 127, dtype=np.uint8).view(name).astype(np.float64)
    middles = (codes[1:] + codes[:-1]) / 2
    points = np.concatenate((middles, middles * (1 + 2.0**-20), middles * (1 - 2.0**-20), codes))
    points = np.concatenate((points, -points)).astype(np.float32)
    rows = np.zeros((len(points), block), np.float32)
    rows[:, 0], rows[:, 1] = largest, points  # the first value pins the scale to 1
    got = assert_quantised(torch.from_numpy(rows), quantiser)
    ties = got[: len(middles), 1].numpy()
    even = np.where(np.arange(len(middles)) % 2 == 0, codes[:-1], codes[1:])
    np.testing.assert_array_equal(ties, even.astype(np.float32))


def test_midpoints_of_e2m1() -> None:
    values = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0])
    want = torch.tensor([0.0, 1, 1, 2, 2, 4, 4])
    row = torch.nn.functional.pad(torch.cat((values, -values, torch.tensor([6.0]))), (0, 17))
    got = assert_quantised(row[None], A4)[0]
    assert_equal(got[:7], want)
    assert_equal(got[7:14], -want)


@pytest.mark.parametrize("quantiser", [A8, KV], ids=("A8", "KV"))
def test_floor_of_fp8_scales(quantiser: tuple[int, float, float]) -> None:
    block = quantiser[0]
    zeros = torch.zeros(1, block)
    scale = numerics.block_scales(zeros, block, 1e-4, 448.0)
    assert scale.unique().tolist() == [2.0**-22]
    assert_equal(assert_quantised(zeros, quantiser), zeros)
    at_floor = torch.tensor([[2.0**-22, 2.0**-31, 2.0**-32, 1e-30, 0.0]])
    row = torch.nn.functional.pad(at_floor, (0, block - 5))
    # the smallest code is 2^-9 times the scale; half of it is a tie and goes to zero
    got = assert_quantised(row, quantiser)
    assert got[0, :5].tolist() == [2.0**-22, 2.0**-31, 0.0, 0.0, 0.0]


def test_floor_of_fp4_scales() -> None:
    smallest = 2.0**-126
    row = torch.nn.functional.pad(torch.tensor([[smallest, smallest / 2, smallest / 4]]), (0, 29))
    got = assert_quantised(row, A4)
    assert got[0, :3].tolist() == [smallest, smallest / 2, 0.0]
    assert_equal(assert_quantised(torch.zeros(1, 32), A4), torch.zeros(1, 32))


def test_a_partial_block_is_a_block_of_its_own(rng: np.random.Generator) -> None:
    x = torch.from_numpy(rng.standard_normal((3, 5, 200)).astype(np.float32))
    x[..., 128:] *= 1e-3
    padded = torch.nn.functional.pad(x, (0, 56))
    want = round_trip(padded, A8)[..., :200]
    assert_equal(by_torch(x, A8), want, "torch")
    assert_equal(by_nodes(x, A8), want, "nodes")


@QUANTISERS
def test_a_second_round_trip_changes_nothing(
    quantiser: tuple[int, float, float], rng: np.random.Generator
) -> None:
    x = torch.from_numpy(rng.standard_normal((64, 128)).astype(np.float32))
    once = assert_quantised(x, quantiser)
    assert_equal(assert_quantised(once, quantiser), once)
    assert_equal(once.to(torch.bfloat16).float(), once, "codes times scales fit bf16")


@pytest.mark.parametrize("size", [1, 2, 32, 128])
def test_hadamard_is_sylvesters(size: int) -> None:
    h = numerics.hadamard(size)
    want = [[(-1.0) ** bin(a & b).count("1") for b in range(size)] for a in range(size)]
    assert_equal(h, torch.tensor(want))
    assert_equal(h @ h.T, size * torch.eye(size))


def test_hadamard_then_fp4(rng: np.random.Generator) -> None:
    """Scaled before the one rounding to bf16, then A4; the product with the matrix is in float32."""
    x = torch.from_numpy(rng.standard_normal((50, 3, 128)).astype(np.float32)).to(torch.bfloat16)
    exact = x.double() @ numerics.hadamard(128).double() * 128**-0.5
    want = round_trip(exact.float().to(torch.bfloat16), A4)
    got = numerics.hadamard_fp4(x.float(), x)
    # a sum next to a border of bf16 may fall on its other side
    assert (got != want).float().mean() < 1e-3
    there = run_nodes(lambda x: nodes.hadamard_fp4(x, 128), {"x": x.float()}, got, OFFICIAL)
    assert (there != got).float().mean() < 1e-3
