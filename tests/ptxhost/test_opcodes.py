"""Every opcode of the table against its oracle, on edge values and random ones; all are compiled at once."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ds4export.ptxhost.forms import FORMS
from tests.ptxhost.harness import compiled, kernel, launch, module
from tests.ptxhost.oracle import oracle
from tests.ptxhost.values import FLOATS, NAN, number, width

THREADS = 256
# What double precision rounds to float32 in another library may differ by a unit; so may a GPU's approximations.
APPROXIMATE = ("ex2", "lg2", "sin", "cos", "tanh", "rsqrt")
# Their operand is an address of the running block.
OF_THE_BLOCK = ("cvta.shared.u64", "cvta.to.shared.u64")
OPCODES = sorted(set(FORMS) - set(OF_THE_BLOCK))

_FLOAT_EDGES = (
    0.0,
    -0.0,
    1.0,
    -1.5,
    0.5,
    2.5,
    3.5,
    -2.5,
    448.0,
    449.0,
    6.5,
    1e30,
    -1e-30,
    math.inf,
    -math.inf,
    math.nan,
    2.0**31,
    -(2.0**63),
)


def bits_of(kind: str, rng: np.random.Generator, count: int) -> list[int]:
    """Values of a type as bits: its edges first, then random ones."""
    w = width(kind)
    if kind == "pred":
        return [int(b) for b in rng.integers(0, 2, count)]
    random = [int.from_bytes(rng.bytes(w // 8), "little") for _ in range(count)]
    if kind in FLOATS:
        dtype: Any = {"f32": np.float32, "f64": np.float64}.get(kind)
        if dtype:
            with np.errstate(over="ignore"):
                moderate = [*_FLOAT_EDGES, *(rng.standard_normal(count // 2) * 100)]
                edges = [int.from_bytes(dtype(v).tobytes(), "little") for v in moderate]
            return [*edges, 1, 1 << (w - 1) | 3, *random][:count]
        return [0, 1 << 15, 1, 0x3F80, 0x3C00, 0xBF80, 0x7F80, 0x7C00, 0x7FFF, *random][:count]
    small = [0, 1, 2, 3, 7, 31, 32, 33, 63, 64, 255, 1 << (w - 1), (1 << w) - 1, (1 << (w - 1)) - 1]
    return ([v % (1 << w) for v in small] + random)[:count]


def sources_of(opcode: str) -> list[list[int]]:
    """One list per source, THREADS long; pairs of edges meet."""
    rng = np.random.default_rng(list(opcode.encode()))
    columns = [bits_of(kind, rng, 64) for kind in FORMS[opcode].src]
    picked = []
    for i, column in enumerate(columns):
        order = (
            np.arange(THREADS) // 16 ** min(i, 1)
            if len(columns) < 3
            else rng.integers(0, 64, THREADS)
        )
        picked.append([column[int(k) % (16 if len(columns) == 2 else 64)] for k in order])
        if len(columns) == 2:
            picked[-1][THREADS // 2 :] = [column[int(k)] for k in rng.integers(0, 64, THREADS // 2)]
    return picked


def text_of(index: int, opcode: str) -> str:
    """Loads the sources, executes, stores: in registers of the types' widths."""
    form = FORMS[opcode]
    lines, operands = [], []
    for i, kind in enumerate(form.src):
        lines.append(
            f"mul.wide.u32 %rd20, %r0, 8;\nadd.s64 %rd20, %rd20, %rd{i + 1};\nld.global.u64 %rd{21 + i}, [%rd20];"
        )
        if opcode.startswith(("lop3",)) and i == 3:
            operands.append(f"%r{31 + i}")
        elif kind == "pred":
            lines.append(f"setp.ne.s64 %p{i + 1}, %rd{21 + i}, 0;")
            operands.append(f"%p{i + 1}")
            continue
        w = max(width(kind), 16)
        name = {16: "rs", 32: "r", 64: "rd"}[w]
        lines += (
            []
            if w == 64
            else [
                f"cvt.u{w}.u64 %{name}{(21 if w == 64 else 1 if w == 16 else 31) + i}, %rd{21 + i};"
            ]
        )
        register = f"%{name}{(21 if w == 64 else 1 if w == 16 else 31) + i}"
        if len(operands) == i:
            operands.append(register)
    w = max(width(form.dst), 16)
    target, store = {
        16: ("%rs7", "cvt.u64.u16 %rd30, %rs7;"),
        32: ("%r39", "cvt.u64.u32 %rd30, %r39;"),
        64: ("%rd30", ""),
    }[w]
    if form.dst == "pred":
        target, store = "%p7", "selp.u64 %rd30, 1, 0, %p7;"
    lines.append(f"{opcode} {target}, {', '.join(operands)};\n{store}")
    lines.append(
        "mul.wide.u32 %rd20, %r0, 8;\nadd.s64 %rd20, %rd20, %rd0;\nst.global.u64 [%rd20], %rd30;"
    )
    return kernel(f"opcode_{index}", 1 + len(form.src), "\n".join(lines))


@pytest.fixture(scope="module")
def library() -> Path:
    return compiled(module(*(text_of(i, o) for i, o in enumerate(OPCODES))), "opcodes")


@pytest.mark.parametrize("opcode", OPCODES)
def test_opcode(library: Path, opcode: str) -> None:
    sources = sources_of(opcode)
    out = np.zeros(THREADS, np.uint64)
    columns = [np.array(column, np.uint64) for column in sources]
    launch(library, f"opcode_{OPCODES.index(opcode)}", [out, *columns], threads=THREADS)
    expected, dst = oracle(opcode), FORMS[opcode].dst
    mask = (1 << width(dst)) - 1
    for values, got in zip(zip(*sources, strict=True), out.tolist(), strict=True):
        want = expected(*values)
        assert same(got & mask, want, opcode, dst), (
            f"{opcode} of {[hex(v) for v in values]}: {got & mask:#x}, expected {'NaN' if want is NAN else hex(want)}"
        )


def same(got: int, want: int | None, opcode: str, dst: str) -> bool:
    """Equal bits, or NaN where NaN is expected; the halves of a pair one by one."""
    if dst in ("bf16x2", "f16x2"):
        assert want is not NAN
        halves = ((got & 0xFFFF, want & 0xFFFF), (got >> 16, want >> 16))
        return all(g == w or (_nan(g, dst[:-2]) and _nan(w, dst[:-2])) for g, w in halves)
    if want is NAN:
        return _nan(got, dst)
    return got == want or (opcode.startswith(APPROXIMATE) and abs(got - want) <= 1)


def _nan(bits: int, kind: str) -> bool:
    return kind in FLOATS and math.isnan(number(bits, kind))
