"""ldmatrix and mma of the host against oracles that share no code with it: plugins/oracles.txt.

tensor-layouts has the fragment maps of CUTLASS; mmasim has how each architecture's tensor cores truncate and round,
found by probing GPUs. The host multiplies exactly and rounds once, so values may differ from a GPU's: by no more than
TOLERANCE of the sum of magnitudes, which is what is shown here. Products of e4m3 on sm_89 are added with 13 bits: their
bound is COARSE.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

from tests.ptxhost.harness import compiled, launch, module
from tests.ptxhost.test_warp import PRODUCTS, WARP, _matrices, _product

WHY = "not installed: pip install -r plugins/oracles.txt"
TOLERANCE = 2.0**-21
COARSE = 2.0**-10
ARCHITECTURES = ("Ampere", "Ada Lovelace", "Hopper", "Blackwell", "RTX Blackwell")
E4M3 = "m16n8k32.row.col.f32.e4m3.e4m3.f32"
E4M3_ARCHITECTURES = ("Ada Lovelace", "RTX Blackwell")  # the others have no such instruction
# PTX shape and types -> name of the layouts.
ATOMS = {
    "m16n8k16.row.col.f32.bf16.bf16.f32": "SM80_16x8x16_F32BF16BF16F32_TN",
    "m16n8k16.row.col.f32.f16.f16.f32": "SM80_16x8x16_F32F16F16F32_TN",
    "m16n8k8.row.col.f32.bf16.bf16.f32": "SM80_16x8x8_F32BF16BF16F32_TN",
    E4M3: "SM89_16x8x32_F32E4M3E4M3F32_TN",
}
CHECKED = [
    (architecture, shape)
    for shape in ATOMS
    for architecture in (E4M3_ARCHITECTURES if shape == E4M3 else ARCHITECTURES)
]
COPIES = {
    (1, ""): "SM75_U32x1_LDSM_N",
    (2, ""): "SM75_U32x2_LDSM_N",
    (4, ""): "SM75_U32x4_LDSM_N",
    (1, ".trans"): "SM75_U16x2_LDSM_T",
    (2, ".trans"): "SM75_U16x4_LDSM_T",
    (4, ".trans"): "SM75_U16x8_LDSM_T",
}


@pytest.fixture(scope="module")
def layouts() -> Any:
    return pytest.importorskip("tensor_layouts.atoms_nv", reason=f"tensor-layouts is {WHY}")


@pytest.fixture(scope="module")
def library() -> Path:
    kernels = [_product(i) for i in range(len(PRODUCTS))]
    kernels += [_matrices(n, t) for n, t in itertools.product((1, 2, 4), ("", ".trans"))]
    return compiled(module(*kernels), "oracles")


def places(layout: Any, num_values: int, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Row and column, each [lane, value], that a layout (lane, value) -> column-major offset names."""
    offsets = np.array([[layout(t, v) for v in range(num_values)] for t in range(WARP)])
    return offsets % rows, offsets // rows


def multiplied(library: Path, atom: Any, shape: str, a: Any, b: Any, c: np.ndarray) -> np.ndarray:
    """a [16, k], b [k, 8], c [16, 8] through the host's mma, in registers filled and read by the oracle's maps."""
    index = next(i for i, (name, _, _) in enumerate(PRODUCTS) if name == shape)
    k = a.shape[1]
    own_a, own_b = np.zeros((WARP, 4), np.uint32), np.zeros((WARP, 2), np.uint32)
    in_a = a[places(atom.a_layout, k // 2, 16)].view(np.uint32)
    in_b = b.T[places(atom.b_layout, k // 4, 8)].view(np.uint32)
    own_a[:, : in_a.shape[1]], own_b[:, : in_b.shape[1]] = in_a, in_b
    at = places(atom.c_layout, 4, 16)
    registers = np.ascontiguousarray(c[at])
    launch(library, f"product_{index}", [registers, own_a, own_b], threads=WARP)
    out = np.full_like(c, np.nan)
    out[at] = registers
    return out


@pytest.mark.parametrize("shape", ATOMS)
def test_fragments_of_a_product(
    library: Path, layouts: Any, rng: np.random.Generator, shape: str
) -> None:
    """Small integers: every product and sum is exact, so only a register in the wrong place can differ."""
    _, k, dtype = next(p for p in PRODUCTS if p[0] == shape)
    atom = getattr(layouts, ATOMS[shape])
    assert atom.ptx == f"mma.sync.aligned.{shape}"
    most = 16 if shape == E4M3 else 64  # exact in the format
    a, b = rng.integers(-most, most + 1, (16, k)), rng.integers(-most, most + 1, (k, 8))
    c = rng.integers(-1000, 1000, (16, 8))
    got = multiplied(library, atom, shape, a.astype(dtype), b.astype(dtype), c.astype(np.float32))
    np.testing.assert_array_equal(got, (a @ b + c).astype(np.float32))


@pytest.mark.parametrize(("num", "trans"), COPIES)
def test_fragments_of_loaded_matrices(
    library: Path, layouts: Any, rng: np.random.Generator, num: int, trans: str
) -> None:
    atom = getattr(layouts, COPIES[num, trans])
    rows = rng.permutation(1 << 16)[: WARP * 8].astype(np.uint16).reshape(WARP, 8)
    # Where each 16-bit value of the addressed rows lies in the space that both layouts share.
    held = {
        atom.src_layout_bits(lane, 16 * i): rows[lane, i]
        for lane, i in itertools.product(range(8 * num), range(8))
    }
    assert len(held) == 64 * num
    want = [
        [held[atom.dst_layout_bits(lane, 16 * i)] for i in range(2 * num)] for lane in range(WARP)
    ]
    out = np.zeros((WARP, 4), np.uint32)
    name = f"matrices_{num}{trans.replace('.', '_')}"
    launch(library, name, [out, rows], threads=WARP)
    got = np.ascontiguousarray(out[:, :num]).view(np.uint16)
    np.testing.assert_array_equal(got, np.array(want))


def operands(kind: str, rng: np.random.Generator, k: int, dtype: Any) -> tuple[Any, Any, Any]:
    """a [16, k], b [k, 8] in dtype and c [16, 8] float32 that truncation treats differently."""
    a, b, c = (rng.standard_normal(s) for s in ((16, k), (k, 8), (16, 8)))
    if (
        kind == "wide"
    ):  # terms of very different exponents: what is far below the largest is cut off
        a, b = a * 2.0 ** rng.integers(-6, 7, a.shape), b * 2.0 ** rng.integers(-6, 7, b.shape)
    a, b = a.astype(dtype), b.astype(dtype)
    if kind == "cancelling":
        c = -(a.astype(np.float64) @ b.astype(np.float64))
    return a, b, c.astype(np.float32)


def as_torch(values: np.ndarray) -> torch.Tensor:
    """The same bits: torch takes no array of ml_dtypes."""
    if values.dtype == np.float32 or values.dtype == np.float16:
        return torch.from_numpy(values)
    if values.dtype == ml_dtypes.float8_e4m3fn:
        return torch.from_numpy(values.view(np.int8)).view(torch.float8_e4m3fn)
    return torch.from_numpy(values.view(np.int16)).view(torch.bfloat16)


@pytest.mark.parametrize("kind", ["normal", "wide", "cancelling"])
@pytest.mark.parametrize(("architecture", "shape"), CHECKED)
def test_values_of_a_product(
    library: Path,
    layouts: Any,
    rng: np.random.Generator,
    architecture: str,
    shape: str,
    kind: str,
) -> None:
    simulated = pytest.importorskip("mmasim.nv_ptx", reason=f"mmasim is {WHY}")
    model = simulated.MMA(architecture, shape.replace(".row.col", ""))
    _, k, dtype = next(p for p in PRODUCTS if p[0] == shape)
    bound = COARSE if (architecture, shape) == ("Ada Lovelace", E4M3) else TOLERANCE
    for _ in range(20):
        a, b, c = operands(kind, rng, k, dtype)
        got = multiplied(library, getattr(layouts, ATOMS[shape]), shape, a, b, c)
        want = model(as_torch(a), as_torch(b), as_torch(c)).numpy()
        size = abs(a.astype(np.float64)) @ abs(b.astype(np.float64)) + abs(c)
        apart = abs(got.astype(np.float64) - want) / size
        assert apart.max() <= bound, f"{apart.max() / bound:.2f} of the tolerance"
