"""Opcodes that touch memory: ld, st, atom, red, cp.async, prefetches.

Every modifier that may stand in an opcode is in its pattern; another one is refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from ds4export.ptxhost.operands import CPP_TYPE, Names, address, parameter, read, vector, write
from ds4export.ptxhost.parse import Instruction

Emit = Callable[[Instruction, Names, "re.Match[str]"], str]

_HINTS = r"(?:\.(?:ca|cg|cs|lu|cv|wb|wt|nc))?(?:\.L1::\w+)?(?:\.L2::(?:64|128|256)B)?"
_TYPE = r"\.([bus](?:8|16|32|64)|f32|f64)"
LOAD = rf"ld(?:\.volatile)?(?:\.(global|shared|local|const|param))?{_HINTS}(?:\.v([248]))?{_TYPE}"
STORE = rf"st(?:\.volatile)?(?:\.(global|shared|local))?{_HINTS}(?:\.v([248]))?{_TYPE}"
ATOMIC = (
    r"(atom|red)(?:\.relaxed)?(?:\.(?:gpu|cta))?(?:\.(global|shared))?(?:\.(?:relaxed))?"
    r"\.(add|min|max|and|or|xor|exch|cas)\.(b32|b64|u32|s32|u64|s64|f32|f64)"
)


def _load(at: Instruction, names: Names, found: re.Match[str]) -> str:
    space, count, kind = found.groups()
    if len(at.operands) != 2:
        raise at.refuse("two operands expected")
    targets = vector(at.operands[0])
    if len(targets) != int(count or 1):
        raise at.refuse("the number of registers is not that of the opcode")
    cpp = CPP_TYPE[kind]
    if space == "param":
        size = int(kind[1:]) // 8
        values = [parameter(at.operands[1], kind, at, names, i * size) for i in range(len(targets))]
        return " ".join(write(t, v, kind, at, names) for t, v in zip(targets, values, strict=True))
    source = address(at.operands[1], space or "global", at, names)
    puts = " ".join(write(t, f"m[{i}]", kind, at, names) for i, t in enumerate(targets))
    # All elements are read before a register changes: the address may stand in one of them.
    held = "".join(f"v[{i}]," for i in range(len(targets))).rstrip(",")
    reads = f"auto const* v = from<{cpp}, {len(targets)}>({source}); {cpp} const m[] = {{{held}}};"
    return f"{{ {reads} {puts} }}"


def _store(at: Instruction, names: Names, found: re.Match[str]) -> str:
    space, count, kind = found.groups()
    sources = vector(at.operands[1])
    if len(sources) != int(count or 1):
        raise at.refuse("the number of registers is not that of the opcode")
    target = address(at.operands[0], space or "global", at, names)
    puts = " ".join(f"m[{i}] = {read(s, kind, at, names)};" for i, s in enumerate(sources))
    return f"{{ auto* m = to<{CPP_TYPE[kind]}, {len(sources)}>({target}); {puts} }}"


_ATOMIC_TYPES = {
    "add": ("u32", "s32", "u64", "f32", "f64"),
    **dict.fromkeys(("min", "max"), ("u32", "s32", "u64", "s64")),
    **dict.fromkeys(("and", "or", "xor", "exch", "cas"), ("b32", "b64")),
}


def _atomic(at: Instruction, names: Names, found: re.Match[str]) -> str:
    root, space, operation, kind = found.groups()
    if kind not in _ATOMIC_TYPES[operation]:
        raise at.refuse(f"`{operation}` has no type `{kind}`")
    operands = at.operands if root == "red" else at.operands[1:]
    where = f"to<{CPP_TYPE[kind]}>({address(operands[0], space or 'global', at, names)})"
    values = ", ".join(read(v, kind, at, names) for v in operands[1:])
    function = {"exch": "exchange", "cas": "compare"}.get(operation, operation)
    call = f"atomic_{function}<{CPP_TYPE[kind]}>({where}, {values})"
    return f"{call};" if root == "red" else write(at.operands[0], call, kind, at, names)


COPY = r"cp\.async\.(ca|cg)\.shared\.global(?:\.L2::(?:64|128|256)B)?"


def _copy_async(at: Instruction, names: Names, found: re.Match[str]) -> str:
    if at.operands[2] not in (("16",) if found[1] == "cg" else ("4", "8", "16")):
        raise at.refuse(f"cp.async.{found[1]} does not copy {at.operands[2]} bytes")
    target = address(at.operands[0], "shared", at, names)
    source = address(at.operands[1], "global", at, names)
    num_read = (
        read(at.operands[3], "u32", at, names) if len(at.operands) > 3 else f"{at.operands[2]}u"
    )
    return (
        f"copy_async(reinterpret_cast<void*>({target}), reinterpret_cast<void const*>({source}), "
        f"{at.operands[2]}u, {num_read});"
    )


def _commit_copies(at: Instruction, names: Names, found: re.Match[str]) -> str:
    return "commit_copies();"


def _wait_copies(at: Instruction, names: Names, found: re.Match[str]) -> str:
    return f"wait_copies({read(at.operands[0], 'u32', at, names)});"


def _wait_all_copies(at: Instruction, names: Names, found: re.Match[str]) -> str:
    return "wait_all_copies();"


def _nothing(at: Instruction, names: Names, found: re.Match[str]) -> str:
    return ";"


MEMORY: dict[str, Emit] = {
    LOAD: _load,
    STORE: _store,
    ATOMIC: _atomic,
    COPY: _copy_async,
    r"cp\.async\.commit_group": _commit_copies,
    r"cp\.async\.wait_group": _wait_copies,
    r"cp\.async\.wait_all": _wait_all_copies,
    r"prefetch\.global\.L[12]": _nothing,
}
