"""Shuffles, votes, reductions, ldmatrix and mma of a warp against numpy."""

from __future__ import annotations

import functools
import itertools
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from tests.ptxhost.harness import compiled, kernel, launch, module

WARP = 32
SHUFFLES = [
    (k, b, c)
    for k in ("up", "down", "bfly", "idx")
    for b in (1, 3, 16)
    for c in ((0, 0x1800) if k == "up" else (31, 0x181F))
]
REDUCTIONS = (
    [(o, "u32") for o in ("add", "min", "max")]
    + [(o, "s32") for o in ("add", "min", "max")]
    + [(o, "b32") for o in ("and", "or", "xor")]
)
_FULL = "0xffffffff"

_IN = """mul.wide.u32 %rd10, %r0, 4;
add.s64 %rd11, %rd0, %rd10;
add.s64 %rd12, %rd1, %rd10;
ld.global.b32 %r1, [%rd12];
"""
_OUT = "\nst.global.b32 [%rd11], %r2;"


def _shuffle(kind: str, b: int, c: int) -> str:
    flag = "\nselp.b32 %r3, 1, 0, %p1;\nst.global.b32 [%rd11+128], %r3;"
    return _IN + f"shfl.sync.{kind}.b32 %r2|%p1, %r1, {b}, {c}, {_FULL};" + _OUT + flag


# D (16 x 8) in the registers of a warp: rows lane/4 and lane/4 + 8, columns 2·(lane%4) and the next.
_PRODUCT = """mul.wide.u32 %rd10, %r0, 16;
add.s64 %rd11, %rd1, %rd10;
ld.global.v4.b32 {{%r1, %r2, %r3, %r4}}, [%rd11];
mul.wide.u32 %rd12, %r0, 8;
add.s64 %rd13, %rd2, %rd12;
ld.global.v2.b32 {{%r5, %r6}}, [%rd13];
add.s64 %rd14, %rd0, %rd10;
ld.global.v4.f32 {{%f1, %f2, %f3, %f4}}, [%rd14];
mma.sync.aligned.{shape} {{%f5, %f6, %f7, %f8}}, {{{a}}}, {{{b}}}, {{%f1, %f2, %f3, %f4}};
st.global.v4.f32 [%rd14], {{%f5, %f6, %f7, %f8}};"""
PRODUCTS = [
    ("m16n8k16.row.col.f32.bf16.bf16.f32", 16, ml_dtypes.bfloat16),
    ("m16n8k16.row.col.f32.f16.f16.f32", 16, np.float16),
    ("m16n8k8.row.col.f32.bf16.bf16.f32", 8, ml_dtypes.bfloat16),
    ("m16n8k32.row.col.f32.e4m3.e4m3.f32", 32, ml_dtypes.float8_e4m3fn),
]


def _product(index: int) -> str:
    shape, k, _ = PRODUCTS[index]
    a, b = ("%r1, %r2", "%r5") if k == 8 else ("%r1, %r2, %r3, %r4", "%r5, %r6")
    return kernel(f"product_{index}", 3, _PRODUCT.format(shape=shape, a=a, b=b))


# Copies 512 bytes to shared memory, reads them as matrices, stores the registers of each lane.
_MATRICES = """mul.wide.u32 %rd10, %r0, 16;
add.s64 %rd11, %rd1, %rd10;
ld.global.v4.b32 {{%r1, %r2, %r3, %r4}}, [%rd11];
mov.u32 %r5, window;
mad.lo.s32 %r5, %r0, 16, %r5;
st.shared.v4.b32 [%r5], {{%r1, %r2, %r3, %r4}};
bar.warp.sync 0xffffffff;
ldmatrix.sync.aligned.m8n8.x{num}{trans}.shared.b16 {{{registers}}}, [%r5];
add.s64 %rd12, %rd0, %rd10;
{stores}"""


def _matrices(num: int, trans: str) -> str:
    registers = [f"%r{10 + i}" for i in range(num)]
    stores = "\n".join(f"st.global.b32 [%rd12+{4 * i}], {r};" for i, r in enumerate(registers))
    body = _MATRICES.format(num=num, trans=trans, registers=", ".join(registers), stores=stores)
    return kernel(
        f"matrices_{num}{trans.replace('.', '_')}", 2, body, ".shared .align 16 .b8 window[512];"
    )


_VOTES = (
    _IN
    + f"""setp.ne.s32 %p1, %r1, 0;
vote.sync.ballot.b32 %r2, %p1, {_FULL};
vote.sync.any.pred %p2, %p1, {_FULL};
vote.sync.all.pred %p3, %p1, {_FULL};
vote.sync.all.pred %p4, !%p1, {_FULL};
selp.b32 %r3, 1, 0, %p2;
selp.b32 %r4, 1, 0, %p3;
selp.b32 %r5, 1, 0, %p4;
st.global.b32 [%rd11+128], %r3;
st.global.b32 [%rd11+256], %r4;
st.global.b32 [%rd11+384], %r5;"""
    + _OUT
)
# Half of the warp exchanges under its own mask while the other half is already at the exchange of all.
_HALVES = (
    _IN
    + f"""mov.u32 %r2, %r1;
setp.ge.u32 %p1, %r0, 16;
@%p1 bra $L_all;
shfl.sync.bfly.b32 %r2, %r1, 1, 31, 0xffff;
$L_all:
shfl.sync.bfly.b32 %r2, %r2, 16, 31, {_FULL};"""
    + _OUT
)


@pytest.fixture(scope="module")
def library() -> Path:
    kernels = [kernel(f"shuffle_{i}", 2, _shuffle(*s)) for i, s in enumerate(SHUFFLES)]
    kernels += [
        kernel(f"reduce_{i}", 2, _IN + f"redux.sync.{o}.{t} %r2, %r1, {_FULL};" + _OUT)
        for i, (o, t) in enumerate(REDUCTIONS)
    ]
    kernels += [kernel("match", 2, _IN + f"match.any.sync.b32 %r2, %r1, {_FULL};" + _OUT)]
    kernels += [kernel("votes", 2, _VOTES), kernel("halves", 2, _HALVES)]
    kernels += [_product(i) for i in range(len(PRODUCTS))]
    kernels += [_matrices(n, t) for n, t in itertools.product((1, 2, 4), ("", ".trans"))]
    return compiled(module(*kernels), "warp")


@pytest.mark.parametrize("order", [0, 1, 2])
@pytest.mark.parametrize(
    "index", range(len(SHUFFLES)), ids=lambda i: "-".join(map(str, SHUFFLES[i]))
)
def test_shuffle(library: Path, rng: np.random.Generator, index: int, order: int) -> None:
    kind, b, c = SHUFFLES[index]
    values, out = rng.integers(0, 1 << 32, WARP, np.uint32), np.zeros(2 * WARP, np.uint32)
    launch(library, f"shuffle_{index}", [out, values], threads=WARP, order=order)
    segment = 8 if c & 0x1800 else 32  # the mask of segments in bits 8 to 12: 0x18 leaves 8 lanes
    for lane in range(WARP):
        first = lane // segment * segment
        source = {"up": lane - b, "down": lane + b, "bfly": lane ^ b, "idx": first + b % segment}[
            kind
        ]
        inside = source >= first if kind == "up" else source < first + segment
        assert out[lane] == values[source if inside else lane], lane
        assert out[WARP + lane] == inside, lane


@pytest.mark.parametrize("index", range(len(REDUCTIONS)), ids=lambda i: ".".join(REDUCTIONS[i]))
def test_reduction(library: Path, rng: np.random.Generator, index: int) -> None:
    operation, kind = REDUCTIONS[index]
    values = rng.integers(0, 1 << 32, WARP, np.uint32)
    out = np.zeros(WARP, np.uint32)
    launch(library, f"reduce_{index}", [out, values], threads=WARP)
    function = {
        "add": np.add,
        "min": np.minimum,
        "max": np.maximum,
        "and": np.bitwise_and,
        "or": np.bitwise_or,
        "xor": np.bitwise_xor,
    }[operation]
    typed = values.view(np.int32 if kind == "s32" else np.uint32)
    with np.errstate(over="ignore"):
        want = functools.reduce(function, typed).view(np.uint32)
    assert (out == want).all()


def test_votes(library: Path, rng: np.random.Generator) -> None:
    for values in (
        np.zeros(WARP, np.uint32),
        np.ones(WARP, np.uint32),
        rng.integers(0, 2, WARP, np.uint32),
    ):
        out = np.zeros(4 * WARP, np.uint32)
        launch(library, "votes", [out, values], threads=WARP)
        ballot = sum(int(v) << i for i, v in enumerate(values))
        for part, want in enumerate((ballot, values.any(), values.all(), not values.any())):
            assert (out[part * WARP :][:WARP] == want).all(), part


def test_match(library: Path, rng: np.random.Generator) -> None:
    values, out = rng.integers(0, 4, WARP, np.uint32), np.zeros(WARP, np.uint32)
    launch(library, "match", [out, values], threads=WARP)
    assert out.tolist() == [sum(1 << i for i in range(WARP) if values[i] == v) for v in values]


@pytest.mark.parametrize("order", [0, 1, 2])
def test_an_exchange_of_some_lanes_while_others_wait_for_all(
    library: Path, rng: np.random.Generator, order: int
) -> None:
    values, out = rng.integers(0, 1 << 32, WARP, np.uint32), np.zeros(WARP, np.uint32)
    launch(library, "halves", [out, values], threads=WARP, order=order)
    swapped = values.copy()
    swapped[:16] = values[np.arange(16) ^ 1]
    np.testing.assert_array_equal(out, swapped[np.arange(WARP) ^ 16])


@pytest.mark.parametrize("index", range(len(PRODUCTS)), ids=lambda i: PRODUCTS[i][0])
def test_matrix_product(library: Path, rng: np.random.Generator, index: int) -> None:
    _, k, dtype = PRODUCTS[index]
    a, b = rng.standard_normal((16, k)).astype(dtype), rng.standard_normal((k, 8)).astype(dtype)
    c = rng.standard_normal((16, 8)).astype(np.float32)
    per_register, row = 4 // np.dtype(dtype).itemsize, np.arange(WARP) // 4
    column = np.arange(WARP) % 4 * per_register
    half = 4 * per_register  # of k, that the four lanes of a row hold together

    def registers(matrix: np.ndarray, places: list[tuple[int, int]]) -> np.ndarray:
        parts = [
            np.stack([matrix[r + row, h + column + e] for e in range(per_register)], -1)
            for r, h in places
        ]
        return np.stack(parts, 1).view(np.uint32)[..., 0]

    halves = range(0, k, half)
    own_a = np.zeros((WARP, 4), np.uint32)
    own_b = np.zeros((WARP, 2), np.uint32)
    got_a = registers(a, [(r, h) for h in halves for r in (0, 8)])
    got_b = registers(b.T.copy(), [(0, h) for h in halves])
    own_a[:, : got_a.shape[1]], own_b[:, : got_b.shape[1]] = got_a, got_b
    place = (
        np.stack([row, row, row + 8, row + 8], 1),
        np.stack([np.arange(WARP) % 4 * 2 + e % 2 for e in range(4)], 1),
    )
    d = c[place].copy()
    launch(library, f"product_{index}", [d, own_a, own_b], threads=WARP)
    want = a.astype(np.float64) @ b.astype(np.float64) + c
    np.testing.assert_allclose(d, want[place].astype(np.float32), rtol=2e-7, atol=1e-7)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("num", [1, 2, 4])
def test_load_matrices(library: Path, rng: np.random.Generator, num: int, transposed: bool) -> None:
    rows = rng.integers(0, 1 << 16, (WARP, 8), np.uint16)
    out = np.zeros((WARP, 4), np.uint32)
    launch(library, f"matrices_{num}{'_trans' if transposed else ''}", [out, rows], threads=WARP)
    for m in range(num):
        matrix = rows[8 * m : 8 * m + 8]
        wanted = (matrix.T if transposed else matrix).copy().view(np.uint32)  # [8, 4]
        np.testing.assert_array_equal(out[:, m].reshape(8, 4), wanted)
