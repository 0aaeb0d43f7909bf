"""Opcodes that compute one value from registers: a table from the exact opcode to what it computes.

A form gives the type of the destination, the types of the sources and the C++ expression over {0}, {1}, …;
its functions are in plugins/host/ptx.h.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

from ds4export.ptxhost.operands import CPP_TYPE

INTEGERS = ("s16", "u16", "s32", "u32", "s64", "u64")
SIGNED, UNSIGNED = ("s16", "s32", "s64"), ("u16", "u32", "u64")
BITS = ("b16", "b32", "b64")


@dataclass(frozen=True)
class Form:
    """dst = expression over sources."""

    dst: str
    src: tuple[str, ...]
    expression: str


Entry = tuple[str, Form]


def _call(opcode: str, dst: str, src: str, function: str) -> Entry:
    """An opcode that is one call with all sources in order."""
    kinds = tuple(src.split())
    arguments = ", ".join(f"{{{i}}}" for i in range(len(kinds)))
    return opcode, Form(dst, kinds, f"{function}({arguments})")


def _each(
    types: tuple[str, ...], opcode: str, src: str, function: str, dst: str = "{t}"
) -> Iterator[Entry]:
    """One entry per type; {t} is the type in PTX, {c} in C++."""
    for t in types:
        values = {"t": t, "c": CPP_TYPE[t]}
        yield _call(*(text.format(**values) for text in (opcode, dst, src, function)))


# Of 32 and 64 bits, signed or not: as unsigned ones they are operators, and nothing is promoted.
_WRAPPING = {"add": "+", "sub": "-", "mul.lo": "*"}
_INTEGER_FUNCTIONS = {
    "mul.hi": "mul_hi",
    "div": "quotient",
    "rem": "remainder_of",
    "min": "smaller",
    "max": "larger",
}


def _integer_arithmetic() -> Iterator[Entry]:
    for (name, sign), t in product(_WRAPPING.items(), ("s32", "u32", "s64", "u64")):
        bits = f"b{t[1:]}"
        yield f"{name}.{t}", Form(bits, (bits, bits), f"{{0}} {sign} {{1}}")
    for name, t in product(_WRAPPING, ("s16", "u16")):
        yield _call(f"{name}.{t}", t, f"{t} {t}", f"{name.replace('.', '_')}<{CPP_TYPE[t]}>")
    for name, function in _INTEGER_FUNCTIONS.items():
        yield from _each(INTEGERS, name + ".{t}", "{t} {t}", function + "<{c}>")
    yield from _each(INTEGERS, "mad.lo.{t}", "{t} {t} {t}", "mad_lo<{c}>")
    yield from _each(("s32", "u32", "s64", "u64"), "mad.hi.{t}", "{t} {t} {t}", "mad_hi<{c}>")
    yield from _each(SIGNED, "neg.{t}", "{t}", "neg<{c}>")
    yield from _each(SIGNED, "abs.{t}", "{t}", "absolute<{c}>")
    for t, wide in (("s16", "s32"), ("u16", "u32"), ("s32", "s64"), ("u32", "u64")):
        yield _call(f"mul.wide.{t}", wide, f"{t} {t}", f"mul_wide<{CPP_TYPE[t]}>")
        yield _call(f"mad.wide.{t}", wide, f"{t} {t} {wide}", f"mad_wide<{CPP_TYPE[t]}>")
    yield _call("dp4a.s32.s32", "s32", "b32 b32 s32", "dot4_signed")


def _bit_operations() -> Iterator[Entry]:
    for name, sign in (("and", "&"), ("or", "|"), ("xor", "^")):
        for t in (*BITS, "pred"):
            yield f"{name}.{t}", Form(t, (t, t), f"{CPP_TYPE[t]}({{0}} {sign} {{1}})")
    for t in BITS:
        yield f"not.{t}", Form(t, (t,), f"{CPP_TYPE[t]}(~{{0}})")
    yield "not.pred", Form("pred", ("pred",), "!{0}")
    yield from _each(BITS, "shl.{t}", "{t} u32", "shift_left<{c}>")
    yield from _each((*BITS, *SIGNED, *UNSIGNED), "shr.{t}", "{t} u32", "shift_right<{c}>")
    for direction, function in (("l", "left"), ("r", "right")):
        yield (
            f"shf.{direction}.wrap.b32",
            Form("b32", ("b32", "b32", "u32"), f"funnel_{function}({{0}}, {{1}}, {{2}} & 31)"),
        )
        yield (
            f"shf.{direction}.clamp.b32",
            Form(
                "b32",
                ("b32", "b32", "u32"),
                f"funnel_{function}({{0}}, {{1}}, std::min({{2}}, 32u))",
            ),
        )
    yield from _each(("b32", "b64"), "popc.{t}", "{t}", "popcount<{c}>", "u32")
    yield from _each(("b32", "b64"), "clz.{t}", "{t}", "leading_zeros<{c}>", "u32")
    yield from _each(("b32", "b64"), "brev.{t}", "{t}", "reversed<{c}>")
    yield from _each(("s32", "u32", "s64", "u64"), "bfind.{t}", "{t}", "leading_one<{c}>", "u32")
    yield from _each(("s32", "u32", "s64", "u64"), "bfe.{t}", "{t} u32 u32", "extract_field<{c}>")
    yield from _each(("b32", "b64"), "bfi.{t}", "{t} {t} u32 u32", "insert_field<{c}>")
    yield _call("prmt.b32", "b32", "b32 b32 b32", "permute")
    yield _call("lop3.b32", "b32", "b32 b32 b32 u32", "logic3")


def _float_arithmetic() -> Iterator[Entry]:
    for t, rounding in product(("f32", "f64"), ("", ".rn")):
        for name, sign in (("add", "+"), ("sub", "-"), ("mul", "*")):
            yield f"{name}{rounding}.{t}", Form(t, (t, t), f"{{0}} {sign} {{1}}")
    for t, suffix in (("f32", "f"), ("f64", "")):
        yield f"div.rn.{t}", Form(t, (t, t), "{0} / {1}")
        yield f"fma.rn.{t}", Form(t, (t, t, t), f"__builtin_fma{suffix}({{0}}, {{1}}, {{2}})")
        yield f"rcp.rn.{t}", Form(t, (t,), "1 / {0}")
        yield f"sqrt.rn.{t}", Form(t, (t,), "std::sqrt({0})")
        yield f"neg.{t}", Form(t, (t,), "-{0}")
        yield f"abs.{t}", Form(t, (t,), f"__builtin_fabs{suffix}({{0}})")
        yield f"min.{t}", Form(t, (t, t), "smaller({0}, {1})")
        yield f"max.{t}", Form(t, (t, t), "larger({0}, {1})")
    for name, sign in (("add", "+"), ("sub", "-"), ("mul", "*")):
        for rounding in ("", ".rn"):
            yield (
                f"{name}{rounding}.ftz.f32",
                Form("f32", ("f32", "f32"), f"flushed(flushed({{0}}) {sign} flushed({{1}}))"),
            )
        yield f"{name}.sat.f32", Form("f32", ("f32", "f32"), f"saturated({{0}} {sign} {{1}})")
    yield (
        "fma.rn.ftz.f32",
        Form("f32", ("f32",) * 3, "flushed(std::fma(flushed({0}), flushed({1}), flushed({2})))"),
    )
    yield "fma.rn.sat.f32", Form("f32", ("f32",) * 3, "saturated(std::fma({0}, {1}, {2}))")
    for mode, name in (("rz", "ZERO"), ("rm", "DOWN"), ("rp", "UP")):
        for function, count in (("add", 2), ("mul", 2), ("fma", 3)):
            call = f"{function}_directed<Directed::{name}>"
            yield _call(f"{function}.{mode}.f32", "f32", " ".join(["f32"] * count), call)
    yield "cvt.sat.f32.f32", Form("f32", ("f32",), "saturated({0})")
    yield "copysign.f32", Form("f32", ("f32", "f32"), "std::copysign({1}, {0})")


def _approximations() -> Iterator[Entry]:
    for name, expression in (("ex2", "exp2_approx({0})"), ("lg2", "log2_approx({0})"), ("rcp", "(1.0f / {0})"),
                             ("sqrt", "std::sqrt({0})"), ("rsqrt", "reciprocal_sqrt({0})"), ("sin", "sine({0})"),
                             ("cos", "cosine({0})")):  # fmt: skip
        yield f"{name}.approx.f32", Form("f32", ("f32",), expression)
        yield (
            f"{name}.approx.ftz.f32",
            Form("f32", ("f32",), f"flushed({expression.replace('{0}', 'flushed({0})')})"),
        )
    yield "tanh.approx.f32", Form("f32", ("f32",), "tangent_h({0})")
    for name in ("approx", "full"):
        yield f"div.{name}.f32", Form("f32", ("f32", "f32"), "quotient_full({0}, {1})")
        yield (
            f"div.{name}.ftz.f32",
            Form("f32", ("f32", "f32"), "flushed(flushed({0}) / flushed({1}))"),
        )


def _half_arithmetic() -> Iterator[Entry]:
    for t, f in (("bf16", "BF16"), ("f16", "F16")):
        for name in ("add", "sub", "mul", "add.rn", "sub.rn", "mul.rn", "max", "min", "fma.rn"):
            function, count = f"half_{name[:3]}<{f}>", 3 if name == "fma.rn" else 2
            yield _call(f"{name}.{t}", t, " ".join([t] * count), function)
            yield _call(
                f"{name}.{t}x2", f"{t}x2", " ".join([f"{t}x2"] * count), f"pairwise<{function}>"
            )
        yield f"neg.{t}", Form(t, (t,), "uint16_t({0} ^ 0x8000)")
        yield f"abs.{t}", Form(t, (t,), "uint16_t({0} & 0x7fff)")
        yield f"neg.{t}x2", Form(f"{t}x2", (f"{t}x2",), "({0} ^ 0x80008000u)")
        yield f"abs.{t}x2", Form(f"{t}x2", (f"{t}x2",), "({0} & 0x7fff7fffu)")


def _conversions() -> Iterator[Entry]:
    integers = ("s8", "u8", *INTEGERS)
    for dst, src in product(integers, integers):
        yield f"cvt.{dst}.{src}", Form(dst, (src,), f"{CPP_TYPE[dst]}({{0}})")
        yield (
            f"cvt.sat.{dst}.{src}",
            Form(dst, (src,), f"saturated_integer<{CPP_TYPE[dst]}>({{0}})"),
        )
    modes = {"rzi": "ZERO", "rni": "NEAREST", "rmi": "DOWN", "rpi": "UP"}
    for (mode, name), src in product(modes.items(), ("f32", "f64")):
        for dst in integers:
            yield _call(
                f"cvt.{mode}.{dst}.{src}",
                dst,
                src,
                f"integer_from_float<{CPP_TYPE[dst]}, Rounding::{name}>",
            )
            if src == "f32":
                yield (
                    f"cvt.{mode}.ftz.{dst}.f32",
                    Form(
                        dst,
                        ("f32",),
                        f"integer_from_float<{CPP_TYPE[dst]}, Rounding::{name}>(flushed({{0}}))",
                    ),
                )
    for dst, src in product(("f32", "f64"), integers):
        yield f"cvt.rn.{dst}.{src}", Form(dst, (src,), f"{CPP_TYPE[dst]}({{0}})")
    for mode, function in (
        ("rzi", "trunc"),
        ("rni", "nearbyint"),
        ("rmi", "floor"),
        ("rpi", "ceil"),
    ):
        for t in ("f32", "f64"):
            yield _call(f"cvt.{mode}.{t}.{t}", t, t, f"std::{function}")
    yield "cvt.f64.f32", Form("f64", ("f32",), "double({0})")
    yield "cvt.rn.f32.f64", Form("f32", ("f64",), "float({0})")
    yield "cvt.ftz.f32.f32", Form("f32", ("f32",), "flushed({0})")


def _small_float_conversions() -> Iterator[Entry]:
    yield _call("cvt.f32.bf16", "f32", "bf16", "float_from_bf16")
    yield _call("cvt.rn.bf16.f32", "bf16", "f32", "bf16_from_float")
    yield _call("cvt.rn.bf16x2.f32", "bf16x2", "f32 f32", "bf16x2_from_floats")
    yield _call("cvt.f32.f16", "f32", "f16", "float_from_half")
    yield _call("cvt.rn.f16.f32", "f16", "f32", "half_from_float")
    yield _call("cvt.rn.f16x2.f32", "f16x2", "f32 f32", "halves_from_floats")
    for t, f in (("e4m3", "E4M3"), ("e5m2", "E5M2")):
        yield _call(f"cvt.rn.satfinite.{t}x2.f32", "b16", "f32 f32", f"bytes_from_floats<{f}>")
        yield _call(f"cvt.rn.f16x2.{t}x2", "f16x2", "b16", f"halves_from_bytes<{f}>")
    yield _call("cvt.rn.satfinite.e2m1x2.f32", "b8", "f32 f32", "e2m1_from_floats")
    yield _call("cvt.rn.f16x2.e2m1x2", "f16x2", "b8", "halves_from_e2m1")


def _comparisons() -> Iterator[Entry]:
    ordered = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
    unsigned = {"lo": "<", "ls": "<=", "hi": ">", "hs": ">="}
    for name, sign in ordered.items():
        for t in (*INTEGERS, *(BITS if name in ("eq", "ne") else ())):
            yield f"setp.{name}.{t}", Form("pred", (t, t), f"({{0}} {sign} {{1}})")
        for t in ("f32", "f64"):
            # != is true of NaN in C++, `ne` is not
            no_nan = "!unordered({0}, {1}) && " if name == "ne" else ""
            yield f"setp.{name}.{t}", Form("pred", (t, t), f"({no_nan}{{0}} {sign} {{1}})")
            yield (
                f"setp.{name}u.{t}",
                Form("pred", (t, t), f"(unordered({{0}}, {{1}}) || {{0}} {sign} {{1}})"),
            )
    for (name, sign), t in product(unsigned.items(), UNSIGNED):
        yield f"setp.{name}.{t}", Form("pred", (t, t), f"({{0}} {sign} {{1}})")
    for t in ("f32", "f64"):
        yield f"setp.nan.{t}", Form("pred", (t, t), "unordered({0}, {1})")
        yield f"setp.num.{t}", Form("pred", (t, t), "!unordered({0}, {1})")
    for t in (*BITS, *INTEGERS, "f32", "f64"):
        yield f"selp.{t}", Form(t, (t, t, "pred"), "({2} ? {0} : {1})")
    yield "testp.finite.f32", Form("pred", ("f32",), "is_finite({0})")


def _moves() -> Iterator[Entry]:
    for t in ("b16", "u16", "s16", "b32", "u32", "s32", "f32", "b64", "u64", "s64", "f64", "pred"):
        yield f"mov.{t}", Form(t, (t,), "{0}")
    for space in ("global", "local", "const", "param"):
        yield f"cvta.{space}.u64", Form("u64", ("u64",), "{0}")
        yield f"cvta.to.{space}.u64", Form("u64", ("u64",), "{0}")
    yield "cvta.shared.u64", Form("u64", ("u64",), "shared_address(uint32_t({0}))")
    yield "cvta.to.shared.u64", Form("u64", ("u64",), "shared_offset({0})")


_FAMILIES = (
    _integer_arithmetic,
    _bit_operations,
    _float_arithmetic,
    _approximations,
    _half_arithmetic,
    _conversions,
    _small_float_conversions,
    _comparisons,
    _moves,
)
FORMS: dict[str, Form] = dict(entry for family in _FAMILIES for entry in family())
