"""Kernels to C++: one function per kernel over plugins/host/ptx.h, and its entry in the kernel table.

`#line` directives carry the lines of the PTX, so that a sanitizer's report names them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from ds4export.ptxhost.control import CONTROL, label, move_vector
from ds4export.ptxhost.forms import FORMS
from ds4export.ptxhost.memory import MEMORY
from ds4export.ptxhost.operands import CPP_TYPE, Names, read, register, write
from ds4export.ptxhost.parse import (
    Array,
    Instruction,
    Kernel,
    Label,
    Module,
    PtxError,
    Registers,
    Scope,
    Statement,
)

_PATTERNS = [(re.compile(p), emit) for table in (CONTROL, MEMORY) for p, emit in table.items()]
_VECTOR_MOVE = re.compile(r"mov\.(b16|b32|b64)")
DYNAMIC_ALIGN = 16


def translate(module: Module, file: str, kernels: Sequence[Kernel] | None = None) -> str:
    """C++ of the kernels of a module (all by default); `file` is the name that `#line` gives to the PTX."""
    chosen = module.kernels if kernels is None else kernels
    arrays = [_array(a, "static ") for a in module.arrays if a.space != "shared"]
    body = "\n".join([*arrays, *(_function(kernel, module, file) for kernel in chosen)])
    return f'#include "ptx.h"\n\nnamespace ds4::host {{\nnamespace {{\n\n{body}\n}}\n}}\n'


def instruction(at: Instruction, names: Names) -> str:
    """C++ of one instruction, its guard included."""
    statement = _unguarded(at, names)
    if not at.guard:
        return statement
    return f"if ({read(at.guard, 'pred', at, names)}) {{ {statement} }}"


def _unguarded(at: Instruction, names: Names) -> str:
    if (found := _VECTOR_MOVE.fullmatch(at.opcode)) and any(o.startswith("{") for o in at.operands):
        return move_vector(at, names, found)
    if form := FORMS.get(at.opcode):
        if len(at.operands) != len(form.src) + 1:
            raise at.refuse(f"{len(form.src) + 1} operands expected")
        sources = [read(o, k, at, names) for o, k in zip(at.operands[1:], form.src, strict=True)]
        return write(at.operands[0], form.expression.format(*sources), form.dst, at, names)
    for pattern, emit in _PATTERNS:
        if found := pattern.fullmatch(at.opcode):
            return emit(at, names, found)
    raise at.refuse("unknown opcode")


def shared_layout(kernel: Kernel, module: Module) -> tuple[dict[str, int], int]:
    """Offsets of the shared arrays of a kernel, and where dynamic shared memory begins."""
    offsets, at = {}, 0
    own = [s for s in kernel.statements if isinstance(s, Array) and s.space == "shared"]
    common = [a for a in module.arrays if a.space == "shared"]
    for array in sorted((*own, *common), key=lambda a: not a.num_bytes):
        align = array.align if array.num_bytes else max(array.align, DYNAMIC_ALIGN)
        at = -(-at // align) * align
        offsets[array.name] = at
        at += array.num_bytes
    return offsets, at


def _function(kernel: Kernel, module: Module, file: str) -> str:
    shared, static_bytes = shared_layout(kernel, module)
    local = [s for s in kernel.statements if isinstance(s, Array) and s.space != "shared"]
    arrays = {a.name: a for a in (*module.arrays, *local) if a.space != "shared"}
    names = Names(kernel, _register_types(kernel), shared, arrays)
    lines = [
        f"void k_{kernel.name}() {{",
        *(
            _declaration(s)
            for s in kernel.statements
            if isinstance(s, Registers) and s.names[0][0] == "%"
        ),
        *(_array(a, "") for a in local),
        *_code(kernel.statements, names, file),
        "}",
        f'Kernel e_{kernel.name}{{"{kernel.name}", k_{kernel.name}, {static_bytes}, {kernel.max_threads}}};',
        f"AddKernel t_{kernel.name}(e_{kernel.name});",
    ]
    return "\n".join(lines) + "\n"


def _register_types(kernel: Kernel) -> dict[str, str]:
    """The C++ types of the registers. Inline assembly may use a name again, in another scope, for the same type."""
    types: dict[str, str] = {}
    for registers in (s for s in kernel.statements if isinstance(s, Registers)):
        for name in registers.names:
            if types.setdefault(name, _cpp_type(registers)) != _cpp_type(registers):
                raise PtxError(
                    0, name, f"registers of several types have this name in {kernel.name}"
                )
    return types


def _cpp_type(registers: Registers) -> str:
    return CPP_TYPE["b" + registers.type[1:]] if registers.type != "pred" else "bool"


def _declaration(registers: Registers) -> str:
    """Registers begin as all ones: NaN, and an address that faults."""
    cpp = _cpp_type(registers)
    value = "false" if cpp == "bool" else f"{cpp}(~0ull)"
    return f"{cpp} " + ", ".join(f"{register(n)} = {value}" for n in registers.names) + ";"


def _array(array: Array, storage: str) -> str:
    values = array.values or b"\xff" * array.num_bytes
    data = ",".join(str(b) for b in values)
    return f"alignas({array.align}) {storage}unsigned char a_{array.name}[{array.num_bytes}] = {{{data}}};"


def _code(statements: Sequence[Statement], names: Names, file: str) -> Iterator[str]:
    for s in statements:
        match s:
            case Instruction():
                yield f'#line {s.line} "{file}"\n{instruction(s, names)}'
            case Label():
                yield f"{label(s.name)}:;"
            case Scope():
                yield "{" if s.opens else "}"
            case Registers() if s.names[0][0] != "%":
                yield _declaration(s)
            case _:
                pass
