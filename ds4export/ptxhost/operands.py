"""Operands as C++: registers are bits, read and written as the type that the instruction names.

What a translation mostly consists of is written without templates and overloads: a compiler spends its time on those.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from ds4export.ptxhost.parse import Array, Instruction, Kernel, split_operands

CPP_TYPE = {
    "pred": "bool",
    "b8": "uint8_t", "u8": "uint8_t", "s8": "int8_t",
    "b16": "uint16_t", "u16": "uint16_t", "s16": "int16_t", "f16": "uint16_t", "bf16": "uint16_t",
    "b32": "uint32_t", "u32": "uint32_t", "s32": "int32_t", "f32": "float",
    "f16x2": "uint32_t", "bf16x2": "uint32_t",
    "b64": "uint64_t", "u64": "uint64_t", "s64": "int64_t", "f64": "double",
}  # fmt: skip
_BITS = {
    "bool": 1, "uint8_t": 8, "int8_t": 8, "uint16_t": 16, "int16_t": 16, "uint32_t": 32, "int32_t": 32, "float": 32,
    "uint64_t": 64, "int64_t": 64, "double": 64,
}  # fmt: skip
_FLOATS = ("float", "double")

SPECIAL = {
    **{f"%tid.{a}": f"thread.{a}" for a in "xyz"},
    **{f"%ctaid.{a}": f"block.at.{a}" for a in "xyz"},
    **{f"%ntid.{a}": f"block.size.{a}" for a in "xyz"},
    **{f"%nctaid.{a}": f"block.grid.{a}" for a in "xyz"},
    "%laneid": "(thread_rank % 32)",
    "%warpid": "(thread_rank / 32)",
}


@dataclass(frozen=True)
class Names:
    """What a kernel's names stand for: registers by C++ type, shared memory by offset, parameters by index, arrays."""

    kernel: Kernel
    registers: Mapping[str, str]
    shared: Mapping[str, int]
    arrays: Mapping[str, Array]


def register(name: str) -> str:
    """The C++ variable of a register; names without % come from inline assembly."""
    return f"r_{name[1:]}" if name.startswith("%") else f"u_{name.replace('$', '_')}"


def read(text: str, kind: str, at: Instruction, names: Names) -> str:
    """C++ expression of a source operand, of the C++ type of `kind`."""
    cpp = CPP_TYPE[kind]
    if text.startswith("!"):
        return f"!{read(text[1:], kind, at, names)}"
    if text in SPECIAL:
        return _as(cpp, f"uint32_t({SPECIAL[text]})", "uint32_t")
    if text in names.registers:
        return _as(cpp, register(text), names.registers[text])
    return _constant(text, cpp, at, names)


def _as(cpp: str, value: str, own: str) -> str:
    """Bits of the C++ type `own`, not a float, as another type: the lowest of them, or zeros above them."""
    if cpp == own:
        return value
    if "bool" in (cpp, own) or (cpp in _FLOATS and _BITS[cpp] != _BITS[own]):
        return f"in<{cpp}>({value})"
    return f"__builtin_bit_cast({cpp}, {value})" if cpp in _FLOATS else f"{cpp}({value})"


def _constant(text: str, cpp: str, at: Instruction, names: Names) -> str:
    if re.fullmatch(r"0[fF][\da-fA-F]{8}", text):
        return _as(cpp, f"0x{text[2:]}u", "uint32_t")
    if re.fullmatch(r"0[dD][\da-fA-F]{16}", text):
        return _as(cpp, f"0x{text[2:]}ull", "uint64_t")
    if integer := re.fullmatch(r"(-?(?:0[xX][\da-fA-F]+|\d+))U?", text):
        return f"{cpp}({_integer(integer[1], cpp)})"
    if text in names.shared:
        return f"{cpp}({names.shared[text]}u)"
    if text in names.arrays:
        return f"{cpp}(reinterpret_cast<uint64_t>(a_{text}))"
    raise at.refuse(f"operand `{text}` is not known")


def _integer(text: str, cpp: str) -> str:
    value = int(text, 0)
    if cpp in _FLOATS:
        return f"{value}.0"
    bits = max(_BITS[cpp], 32)  # of the type of the literal
    return f"0x{value % (1 << _BITS[cpp] if cpp != 'bool' else 1 << 64):x}{'ull' if bits == 64 else 'u'}"


def write(text: str, value: str, kind: str, at: Instruction, names: Names) -> str:
    """C++ statement that puts a value of `kind` into a destination register; `_` is a value that nobody wants.

    An integer `value` may come in a wider type, of which the lowest bits count.
    """
    if text == "_":
        return f"(void)({value});"
    if text not in names.registers:
        raise at.refuse(f"`{text}` cannot be written")
    name, cpp, own = register(text), CPP_TYPE[kind], names.registers[text]
    if _BITS[cpp] != _BITS[own]:
        return f"{name} = reg<{own}>({cpp}({value}));"
    return (
        f"{name} = __builtin_bit_cast({own}, {cpp}({value}));"
        if cpp in _FLOATS
        else f"{name} = {value};"
    )


def vector(text: str) -> list[str]:
    """The elements of `{a, b}`, or the operand itself."""
    return list(split_operands(text[1:-1])) if text.startswith("{") else [text]


_ADDRESS = re.compile(r"\[\s*([%\w$]+)\s*(?:\+\s*(-?\w+))?\s*\]")


def split_address(text: str, at: Instruction) -> tuple[str, int]:
    """Base and offset of `[base+offset]`."""
    found = _ADDRESS.fullmatch(text)
    if not found:
        raise at.refuse(f"address `{text}` is not known")
    return found[1], int(found[2] or "0", 0)


def address(text: str, space: str, at: Instruction, names: Names) -> str:
    """C++ expression of a host address, uint64_t."""
    base, offset = split_address(text, at)
    if space == "shared":
        return (
            f"shared_address({read(base, 'u32', at, names)} + {offset}u)"
            if offset >= 0
            else (f"shared_address({read(base, 'u32', at, names)} - {-offset}u)")
        )
    return f"uint64_t({read(base, 'u64', at, names)} + uint64_t({offset}ll))"


def parameter(text: str, kind: str, at: Instruction, names: Names, extra: int = 0) -> str:
    """C++ expression of a value in the parameter space, `extra` bytes further on."""
    base, offset = split_address(text, at)
    if base not in names.kernel.parameters:
        raise at.refuse(f"`{base}` is not a parameter")
    index = names.kernel.parameters.index(base)
    return f"parameter<{CPP_TYPE[kind]}>({index}, {offset + extra})"
