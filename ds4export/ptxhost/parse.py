"""PTX text to kernels: declarations, labels, instructions, each with its line. Knows no opcode's meaning.

Refuses what the kernels of this project must not have: functions that were not inlined, and calls.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass


class PtxError(ValueError):
    """PTX that is not translated: the line, its text, and why."""

    def __init__(self, line: int, text: str, why: str) -> None:
        super().__init__(f"PTX line {line}: {why}: {text}")
        self.line, self.text, self.why = line, text, why


@dataclass(frozen=True)
class Instruction:
    """One instruction; `guard` is the predicate register before it, with `!` if negated, or nothing."""

    line: int
    opcode: str
    operands: tuple[str, ...]
    guard: str = ""

    def refuse(self, why: str) -> PtxError:
        return PtxError(self.line, f"{self.opcode} {', '.join(self.operands)}", why)


@dataclass(frozen=True)
class Label:
    """A place to branch to."""

    name: str


@dataclass(frozen=True)
class Registers:
    """`.reg .b32 %r<3>` declares %r0 to %r2; `.reg .pred p, q` names them."""

    type: str
    names: tuple[str, ...]


@dataclass(frozen=True)
class Array:
    """Memory with a name; `values` are its initial bytes, if it has any."""

    space: str
    name: str
    align: int
    num_bytes: int
    values: bytes = b""


@dataclass(frozen=True)
class Scope:
    """A brace: inline assembly declares its own registers."""

    opens: bool


Statement = Instruction | Label | Registers | Array | Scope


@dataclass(frozen=True)
class Kernel:
    """One `.entry`: `parameters` in order, `max_threads` of its launch bounds (0: none)."""

    name: str
    parameters: tuple[str, ...]
    max_threads: int
    statements: tuple[Statement, ...]


@dataclass(frozen=True)
class Module:
    """One PTX file; `arrays` are those outside of kernels."""

    target: str
    kernels: tuple[Kernel, ...]
    arrays: tuple[Array, ...]


_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.S)
_ENTRY = re.compile(r"\.entry\s+([\w$]+)\s*(?:\((.*?)\))?\s*([^{;(]*)\{", re.S)
_ARRAY = re.compile(
    r"(?:\.(?:visible|extern|weak)\s+)*\.(shared|global|const|local)\s+(?:\.align\s+(\d+)\s+)?"
    r"\.(\w+)\s+([\w$]+)\s*(?:\[(\d*)\])?\s*(?:=\s*(.*))?",
    re.S,
)
_REGISTERS = re.compile(r"\.reg\s+\.(\w+)\s+(.*)", re.S)
_INSTRUCTION = re.compile(r"(?:@(!?[%\w$]+)\s+)?([a-z][\w.:]*)\s*(.*)", re.S)
_IGNORED = re.compile(r"\.(pragma|loc|file|section)\b")


def parse(text: str) -> Module:
    """Split PTX into kernels and what they share."""
    text = _COMMENT.sub(lambda found: "\n" * found.group().count("\n"), text)
    kernels, outside, at = [], [], 0
    for entry in _ENTRY.finditer(text):
        end = _closing_brace(text, entry.end() - 1)
        outside.append((text[at : entry.start()], text.count("\n", 0, at) + 1))
        kernels.append(_kernel(entry, text, end))
        at = end + 1
    outside.append((text[at:], text.count("\n", 0, at) + 1))
    target = re.search(r"\.target\s+(\w+)", text)
    arrays = tuple(array for part, line in outside for array in _arrays(part, line))
    return Module(target[1] if target else "", tuple(kernels), arrays)


def _closing_brace(text: str, at: int) -> int:
    depth = 0
    for brace in re.finditer(r"[{}]", text[at:]):
        depth += 1 if brace.group() == "{" else -1
        if depth == 0:
            return at + brace.start()
    raise PtxError(text.count("\n", 0, at) + 1, "{", "a brace is not closed")


def _kernel(entry: re.Match[str], text: str, end: int) -> Kernel:
    name, parameters, directives = entry.groups()
    line = text.count("\n", 0, entry.end()) + 1
    bound = re.search(r"\.maxntid\s+(\d+)(?:\s*,\s*(\d+))?(?:\s*,\s*(\d+))?", directives)
    threads = 1
    for count in bound.groups() if bound else ("0",):
        threads *= int(count or 1)
    names = [p.split("[")[0].split()[-1] for p in (parameters or "").split(",") if p.strip()]
    return Kernel(name, tuple(names), threads, tuple(_statements(text[entry.end() : end], line)))


def _arrays(text: str, line: int) -> Iterator[Array]:
    for at, piece in _pieces(text, line):
        if ".func" in piece:
            raise PtxError(at, piece[:80], "functions that are not inlined are not translated")
        # The directives of a file stand on lines of their own, without a semicolon.
        piece = re.sub(r"^\s*\.(version|target|address_size)[^\n]*", "", piece, flags=re.M).strip()
        piece = re.sub(r"\.(visible|weak)\s*$", "", piece).strip()
        if piece:
            yield _array(piece, at)


def _array(text: str, line: int) -> Array:
    found = _ARRAY.fullmatch(text)
    if not found:
        raise PtxError(line, text[:80], "not a declaration that is known")
    space, align, kind, name, count, values = found.groups()
    size = _size(kind)
    number = int(count) if count else 0 if count == "" else 1
    return Array(space, name, int(align or size), number * size, _initial(values, size, line))


def _size(kind: str) -> int:
    return int(re.sub(r"\D", "", kind)) // 8


def _initial(values: str | None, size: int, line: int) -> bytes:
    if not values:
        return b""
    numbers = values.strip("{} \n").split(",")
    if any(not re.fullmatch(r"\s*-?(\d+|0x[\da-fA-F]+)\s*", n) for n in numbers):
        raise PtxError(line, values[:80], "initial values other than integers are not translated")
    return b"".join((int(n, 0) % (1 << 8 * size)).to_bytes(size, "little") for n in numbers)


def _pieces(text: str, line: int) -> Iterator[tuple[int, str]]:
    """The statements of a text: up to `;`, a label's `:`, or a brace that stands by itself."""
    start, depth = 0, 0
    for found in re.finditer(r"[;{}]|:(?!:)", text):
        mark, piece = found.group(), text[start : found.start()]
        bare = piece.strip()
        if mark in "{}" and (depth or bare):
            depth += 1 if mark == "{" else -1
            continue
        if mark == ":" and (
            depth or not re.fullmatch(r"[$\w]+", bare) or text[found.start() - 1] == ":"
        ):
            continue
        at = line + text.count("\n", 0, start + len(piece) - len(piece.lstrip()))
        start = found.end()
        if mark in "{}":
            yield at, mark
        elif bare:
            yield at, bare + (":" if mark == ":" else "")
    if text[start:].strip():
        yield line + text.count("\n", 0, start), text[start:].strip()


def _statements(body: str, line: int) -> Iterator[Statement]:
    for at, piece in _pieces(body, line):
        if not _IGNORED.match(piece):
            yield _statement(piece, at)


def _statement(piece: str, line: int) -> Statement:
    if piece in "{}":
        return Scope(piece == "{")
    if piece.endswith(":"):
        return Label(piece[:-1])
    if found := _REGISTERS.fullmatch(piece):
        return Registers(found[1], tuple(_register_names(found[2])))
    if piece.startswith("."):
        return _array(piece, line)
    found = _INSTRUCTION.fullmatch(piece)
    if not found:
        raise PtxError(line, piece[:80], "not a statement that is known")
    guard, opcode, operands = found.groups()
    return Instruction(line, opcode, tuple(split_operands(operands)), guard or "")


def _register_names(text: str) -> Iterator[str]:
    for name in (n.strip() for n in text.split(",")):
        counted = re.fullmatch(r"(.*)<(\d+)>", name)
        if not counted:
            yield name
            continue
        yield from (f"{counted[1]}{i}" for i in range(int(counted[2])))


def split_operands(text: str) -> Iterator[str]:
    """Operands at the commas that stand outside of braces and brackets."""
    depth, start = 0, 0
    for at, char in enumerate(text + ","):
        depth += (char in "{[") - (char in "}]")
        if char == "," and depth == 0:
            if text[start:at].strip():
                yield text[start:at].strip()
            start = at + 1
