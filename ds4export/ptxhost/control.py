"""Opcodes of control flow, barriers and warps: bra, ret, bar, shfl, vote, redux, ldmatrix, mma, and mov of vectors."""

from __future__ import annotations

import re

from ds4export.ptxhost.memory import Emit
from ds4export.ptxhost.operands import CPP_TYPE, Names, address, read, vector, write
from ds4export.ptxhost.parse import Instruction

ALL_LANES = "0xffffffffu"


def label(name: str) -> str:
    """The C++ label of a PTX label."""
    return "L_" + name.replace("$", "_")


def _branch(at: Instruction, names: Names, found: re.Match[str]) -> str:
    return f"goto {label(at.operands[0])};"


def _leave(at: Instruction, names: Names, found: re.Match[str]) -> str:
    return "return;"


def _trap(at: Instruction, names: Names, found: re.Match[str]) -> str:
    return 'fault(__LINE__, "the kernel gave up (trap)");'


def _barrier(at: Instruction, names: Names, found: re.Match[str]) -> str:
    values = [read(v, "u32", at, names) for v in at.operands]
    return f"barrier({', '.join(values if len(values) == 2 else [*values, '0u'])});"


def _warp_barrier(at: Instruction, names: Names, found: re.Match[str]) -> str:
    return f"warp_barrier({read(at.operands[0], 'u32', at, names)});"


_SHUFFLES = {"up": "UP", "down": "DOWN", "bfly": "BUTTERFLY", "idx": "INDEX"}


def _shuffle(at: Instruction, names: Names, found: re.Match[str]) -> str:
    target, _, in_range = at.operands[0].partition("|")
    values = ", ".join(read(v, "b32", at, names) for v in at.operands[1:5])
    puts = write(target.strip(), "s.value", "b32", at, names)
    if in_range:
        puts += " " + write(in_range.strip(), "s.in_range", "pred", at, names)
    return f"{{ auto const s = shuffle(Shuffle::{_SHUFFLES[found[1]]}, {values}); {puts} }}"


def _vote(at: Instruction, names: Names, found: re.Match[str]) -> str:
    function = {"ballot.b32": "ballot", "any.pred": "vote_any", "all.pred": "vote_all"}[found[1]]
    value, mask = read(at.operands[1], "pred", at, names), read(at.operands[2], "b32", at, names)
    return write(at.operands[0], f"{function}({value}, {mask})", found[1].split(".")[1], at, names)


def _reduce(at: Instruction, names: Names, found: re.Match[str]) -> str:
    operation, kind = found.groups()
    value, mask = read(at.operands[1], "u32", at, names), read(at.operands[2], "u32", at, names)
    signed = "true" if kind == "s32" else "false"
    call = f"reduce(Reduce::{operation.upper()}, {signed}, {value}, {mask})"
    return write(at.operands[0], call, "b32", at, names)


def _match_any(at: Instruction, names: Names, found: re.Match[str]) -> str:
    value, mask = read(at.operands[1], "b32", at, names), read(at.operands[2], "b32", at, names)
    return write(at.operands[0], f"match_any({value}, {mask})", "b32", at, names)


def _load_matrices(at: Instruction, names: Names, found: re.Match[str]) -> str:
    targets = vector(at.operands[0])
    if len(targets) != int(found[1]):
        raise at.refuse("the number of registers is not that of the opcode")
    row = address(at.operands[1], "shared", at, names)
    puts = " ".join(write(t, f"m[{i}]", "b32", at, names) for i, t in enumerate(targets))
    transposed = "true" if found[2] else "false"
    return f"{{ uint32_t m[{len(targets)}]; load_matrices(m, {len(targets)}, {transposed}, {row}); {puts} }}"


_PRODUCTS = {
    "m16n8k16.row.col.f32.bf16.bf16.f32": ("mma_m16n8k16_bf16", 4, 2),
    "m16n8k16.row.col.f32.f16.f16.f32": ("mma_m16n8k16_f16", 4, 2),
    "m16n8k8.row.col.f32.bf16.bf16.f32": ("mma_m16n8k8_bf16", 2, 1),
    "m16n8k32.row.col.f32.e4m3.e4m3.f32": ("mma_m16n8k32_e4m3", 4, 2),
}


def _matrix_product(at: Instruction, names: Names, found: re.Match[str]) -> str:
    if found[1] not in _PRODUCTS:
        raise at.refuse("this shape and these types of mma are not known")
    function, num_a, num_b = _PRODUCTS[found[1]]
    d, a, b, c = (vector(o) for o in at.operands)
    if [len(d), len(a), len(b), len(c)] != [4, num_a, num_b, 4]:
        raise at.refuse("the number of registers is not that of the opcode")
    values = [
        ", ".join(read(r, kind, at, names) for r in x)
        for x, kind in ((c, "f32"), (a, "b32"), (b, "b32"))
    ]
    own_d, own_a, own_b = values
    arrays = f"float d[] = {{{own_d}}}; uint32_t const a[] = {{{own_a}}}; uint32_t const b[] = {{{own_b}}};"
    puts = " ".join(write(r, f"d[{i}]", "f32", at, names) for i, r in enumerate(d))
    return f"{{ {arrays} {function}(d, a, b); {puts} }}"


def move_vector(at: Instruction, names: Names, found: re.Match[str]) -> str:
    """mov.b32 %r, {%h, %h}; mov.b64 {%r, %r}, %d: pack into one register or unpack, lowest first."""
    kind, bits = found[1], int(found[1][1:])
    target, source = at.operands
    if source.startswith("{"):
        parts = vector(source)
        part = f"b{bits // len(parts)}"
        pieces = [
            f"{CPP_TYPE[kind]}({CPP_TYPE[kind]}({read(p, part, at, names)}) << {i * bits // len(parts)})"
            for i, p in enumerate(parts)
        ]
        return write(target, " | ".join(pieces), kind, at, names)
    parts = vector(target)
    part = f"b{bits // len(parts)}"
    pieces = [f"{CPP_TYPE[part]}(w >> {i * bits // len(parts)})" for i in range(len(parts))]
    puts = " ".join(write(p, v, part, at, names) for p, v in zip(parts, pieces, strict=True))
    return f"{{ {CPP_TYPE[kind]} const w = {read(source, kind, at, names)}; {puts} }}"


CONTROL: dict[str, Emit] = {
    r"bra(?:\.uni)?": _branch,
    r"ret|exit": _leave,
    r"trap": _trap,
    r"bar\.sync|barrier\.sync|barrier\.sync\.aligned|barrier\.cta\.sync(?:\.aligned)?": _barrier,
    r"bar\.warp\.sync": _warp_barrier,
    r"shfl\.sync\.(up|down|bfly|idx)\.b32": _shuffle,
    r"vote\.sync\.(ballot\.b32|any\.pred|all\.pred)": _vote,
    r"redux\.sync\.(add|min|max|and|or|xor)\.(s32|u32|b32)": _reduce,
    r"match\.any\.sync\.b32": _match_any,
    r"ldmatrix\.sync\.aligned\.m8n8\.x([124])(\.trans)?\.shared\.b16": _load_matrices,
    r"mma\.sync\.aligned\.(\S+)": _matrix_product,
}
