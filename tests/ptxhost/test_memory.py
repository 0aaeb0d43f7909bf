"""Loads, stores, atomics and asynchronous copies: through every space, at every width."""

from __future__ import annotations

import functools
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.ptxhost.harness import compiled, kernel, launch, module

THREADS = 64
SPACES = ("global", "shared", "local")
ACCESSES = [
    f"{v}{t}"
    for v in ("", "v2.", "v4.")
    for t in ("b8", "u16", "b32", "f32", "b64")
    if (v, t) != ("v4.", "b64")
]
_REGISTERS = {"b8": "rs", "u16": "rs", "b32": "r", "f32": "f", "b64": "rd"}
_BYTES = {"b8": 1, "u16": 2, "b32": 4, "f32": 4, "b64": 8}

ATOMICS = [
    (operation, kind)
    for operation, kinds in {
        "add": ("u32", "s32", "u64", "f32", "f64"),
        "min": ("u32", "s32", "u64", "s64"),
        "max": ("u32", "s32", "u64", "s64"),
        "and": ("b32", "b64"),
        "or": ("b32", "b64"),
        "xor": ("b32", "b64"),
    }.items()
    for kind in kinds
]
_NUMPY = {
    "u32": np.uint32,
    "s32": np.int32,
    "b32": np.uint32,
    "u64": np.uint64,
    "s64": np.int64,
    "b64": np.uint64,
    "f32": np.float32,
    "f64": np.float64,
}
_REDUCE: dict[str, Any] = {
    "add": np.add,
    "min": np.minimum,
    "max": np.maximum,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
}


def _access(space: str, access: str) -> str:
    """Each thread moves one element group from its input through `space` to its output."""
    count, kind = int(access[1]) if access[0] == "v" else 1, access.split(".")[-1]
    names = [f"%{_REGISTERS[kind]}{i + (24 if kind == 'b64' else 1)}" for i in range(count)]
    group = "{" + ", ".join(names) + "}" if count > 1 else names[0]
    size = count * _BYTES[kind]
    through = {
        "global": "",
        "shared": f"""mov.u32 %r20, window;
mad.lo.s32 %r20, %r0, {size}, %r20;
st.shared.{access} [%r20], {group};
ld.shared.{access} {group}, [%r20];""",
        "local": f"""mov.b64 %rd20, depot;
cvta.local.u64 %rd21, %rd20;
st.local.{access} [%rd20+{size}], {group};
ld.{access} {group}, [%rd21+{size}];""",
    }[space]
    body = f"""mul.wide.u32 %rd10, %r0, {size};
add.s64 %rd11, %rd0, %rd10;
add.s64 %rd12, %rd1, %rd10;
ld.global.nc.{access} {group}, [%rd12];
{through}
st.global.{access} [%rd11], {group};"""
    declared = ".shared .align 16 .b8 window[2048];\n.local .align 16 .b8 depot[64];"
    return kernel(_name("move", space, access), 2, body, declared)


def _name(*parts: str) -> str:
    return "_".join(parts).replace(".", "_")


def _atomic(operation: str, kind: str, space: str, root: str) -> str:
    size = 8 if kind.endswith("64") else 4
    value, old = ("%rd20", "%rd21") if size == 8 else ("%r20", "%r21")
    where = "%rd0" if space == "global" else "%r30"
    target = f"{old}, [{where}]" if root == "atom" else f"[{where}]"
    keep = f"st.global.b{8 * size} [%rd12], {old};" if root == "atom" else ""
    enter = f"""mov.u32 %r30, cell;
setp.eq.s32 %p1, %r0, 0;
ld.global.b{8 * size} {old}, [%rd0];
@%p1 st.shared.b{8 * size} [%r30], {old};
bar.sync 0;"""
    leave = f"""bar.sync 0;
@%p1 ld.shared.b{8 * size} {old}, [%r30];
@%p1 st.global.b{8 * size} [%rd0], {old};"""
    body = f"""mul.wide.u32 %rd10, %r0, {size};
add.s64 %rd11, %rd1, %rd10;
add.s64 %rd12, %rd2, %rd10;
{enter if space == "shared" else ""}
ld.global.b{8 * size} {value}, [%rd11];
{root}.{space}.{operation}.{kind} {target}, {value};
{keep}
{leave if space == "shared" else ""}"""
    return kernel(_name(root, space, operation, kind), 3, body, ".shared .align 8 .b8 cell[8];")


_EXCHANGES = """mul.wide.u32 %rd10, %r0, 4;
add.s64 %rd12, %rd1, %rd10;
add.s32 %r1, %r0, 100;
atom.global.exch.b32 %r2, [%rd0], %r1;
st.global.b32 [%rd12], %r2;
add.s32 %r3, %r0, 1;
atom.global.cas.b32 %r4, [%rd0+4], %r0, %r3;"""

# Reads its word of shared memory between the copy and the wait, and after it.
_COPY = """mul.wide.u32 %rd10, %r0, {size};
add.s64 %rd11, %rd1, %rd10;
mul.wide.u32 %rd12, %r0, 4;
add.s64 %rd13, %rd0, %rd12;
add.s64 %rd14, %rd2, %rd12;
mov.u32 %r1, window;
mad.lo.s32 %r1, %r0, {size}, %r1;
cp.async.{kind}.shared.global [%r1], [%rd11], {size}{read};
cp.async.commit_group;
ld.shared.b32 %r2, [%r1];
st.global.b32 [%rd13], %r2;
cp.async.wait_group 0;
ld.shared.b32 %r3, [%r1];
st.global.b32 [%rd14], %r3;"""
COPIES = [("ca", 4, ""), ("ca", 8, ""), ("cg", 16, ""), ("cg", 16, ", 0"), ("ca", 16, ", 2")]

_CONSTANT = """mul.wide.u32 %rd10, %r0, 2;
mov.u64 %rd11, table;
cvta.const.u64 %rd12, %rd11;
add.s64 %rd13, %rd12, %rd10;
ld.u16 %rs1, [%rd13];
ld.const.u16 %rs2, [table+4];
add.s16 %rs1, %rs1, %rs2;
add.s64 %rd14, %rd0, %rd10;
st.global.u16 [%rd14], %rs1;"""

_GENERIC = """mov.u32 %r1, window;
cvt.u64.u32 %rd10, %r1;
cvta.shared.u64 %rd11, %rd10;
mul.wide.u32 %rd12, %r0, 4;
add.s64 %rd13, %rd11, %rd12;
st.u32 [%rd13], %r0;
cvta.to.shared.u64 %rd14, %rd13;
cvt.u32.u64 %r2, %rd14;
ld.shared.u32 %r3, [%r2];
add.s64 %rd15, %rd0, %rd12;
st.global.u32 [%rd15], %r3;"""


@pytest.fixture(scope="module")
def library() -> Path:
    moves = [_access(s, a) for s, a in itertools.product(SPACES, ACCESSES)]
    atomics = [
        _atomic(*a, s, r)
        for a, s, r in itertools.product(ATOMICS, ("global", "shared"), ("atom", "red"))
    ]
    window = ".shared .align 16 .b8 window[2048];"
    copies = [
        kernel(f"copy_{i}", 3, _COPY.format(kind=k, size=n, read=r), window)
        for i, (k, n, r) in enumerate(COPIES)
    ]
    others = [
        kernel("exchanges", 2, _EXCHANGES),
        kernel("constant", 1, _CONSTANT),
        kernel("generic", 1, _GENERIC, ".shared .align 8 .b8 gap[24];\n" + window),
    ]
    table = ".const .align 2 .u16 table[4] = {1, 2, 65535, 40000};"
    return compiled(module(table, *moves, *atomics, *copies, *others), "memory")


@pytest.mark.parametrize("access", ACCESSES)
@pytest.mark.parametrize("space", SPACES)
def test_move(library: Path, rng: np.random.Generator, space: str, access: str) -> None:
    count, kind = int(access[1]) if access[0] == "v" else 1, access.split(".")[-1]
    source = rng.integers(0, 256, THREADS * count * _BYTES[kind], np.uint8)
    out = np.zeros_like(source)
    launch(library, _name("move", space, access), [out, source], threads=THREADS)
    np.testing.assert_array_equal(out, source)


@pytest.mark.parametrize("root", ["atom", "red"])
@pytest.mark.parametrize("space", ["global", "shared"])
@pytest.mark.parametrize(("operation", "kind"), ATOMICS)
@pytest.mark.parametrize("order", [0, 1, 2])
def test_atomic(
    library: Path,
    rng: np.random.Generator,
    operation: str,
    kind: str,
    space: str,
    root: str,
    order: int,
) -> None:
    dtype = _NUMPY[kind]
    values = rng.integers(0, 1 << 17, THREADS).astype(dtype)  # float sums stay exact
    cell, old = np.array([5, 5], dtype), np.zeros(THREADS, dtype)
    launch(
        library,
        _name(root, space, operation, kind),
        [cell, values, old],
        threads=THREADS,
        order=order,
    )
    assert cell[0] == functools.reduce(_REDUCE[operation], values, dtype(5))
    if root == "atom":
        assert dtype(5) in old


def test_exchange_and_compare(library: Path) -> None:
    cell, old = np.array([7, 0], np.uint32), np.zeros(THREADS, np.uint32)
    launch(library, "exchanges", [cell, old], threads=THREADS)
    assert sorted([*old, cell[0]]) == sorted([7, *range(100, 100 + THREADS)])
    assert cell[1] == THREADS  # each thread found what the one before it had left


@pytest.mark.parametrize("at_issue", [False, True])
@pytest.mark.parametrize("index", range(len(COPIES)))
def test_copy_lands_at_the_wait_or_at_once(
    library: Path, rng: np.random.Generator, index: int, at_issue: bool
) -> None:
    _, size, read = COPIES[index]
    source = rng.integers(0, 256, THREADS * size, np.uint8)
    early, late = np.zeros(THREADS, np.uint32), np.zeros(THREADS, np.uint32)
    launch(
        library, f"copy_{index}", [early, source, late], threads=THREADS, copies_at_issue=at_issue
    )
    expected = source.reshape(THREADS, size)[:, :4].copy()
    if read:
        expected[:, int(read[2:]) :] = 0
    words = expected.view(np.uint32)[:, 0]
    np.testing.assert_array_equal(late, words)
    np.testing.assert_array_equal(
        early, words if at_issue else 0xFFFFFFFF
    )  # shared memory begins as NaN


def test_constant_array(library: Path) -> None:
    out = np.zeros(4, np.uint16)
    launch(library, "constant", [out], threads=4)
    np.testing.assert_array_equal(out, np.array([0, 1, 65534, 39999], np.uint16))


def test_generic_address_of_shared_memory(library: Path) -> None:
    out = np.zeros(THREADS, np.uint32)
    launch(library, "generic", [out], threads=THREADS)
    np.testing.assert_array_equal(out, np.arange(THREADS, dtype=np.uint32))
