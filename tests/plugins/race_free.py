"""Instrument B: sentryward proves a small launch of a kernel free of races in every schedule, or says why not.

The kernel is the PTX of the shipped library, rewritten where sentryward 0.1.1 cannot follow it. Each rewriting keeps
every write and every barrier, and keeps every read or adds to it, so that a race of the original is one of the
rewritten text:

    bfi.b32             and, shl, or: the same value
    struct parameters   one parameter for each field that is read: the same values
    pointers            annotated as global memory of their own, 16-byte aligned: what launchers require
    partial copies      cp.async reads all 16 bytes, also where the source size says 0: the write is always 16
    skipped reads       a branch on a float over loads and float arithmetic alone is not taken: all its loads are done
    copied rows         where the source address of a cp.async was itself kept in shared memory, the read is of the
                        start of a tensor that nothing is stored to, which `never_stored` checks: no write can
                        race with it, wherever in that tensor it is

Owns the rewriting and the verdict; which launches are tried stands in race_launches.py.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ds4export.errors import ToolchainError
from ds4export.ptxhost.toolchain import BUILD

RACE_FREE = "race_free"
TIMEOUT_S = 300
REGISTER = r"%[a-z]+\d+"


@dataclass(frozen=True)
class Data:
    """A pointer to integers that steer control flow, with what stands there."""

    type: str
    values: tuple[int, ...]


@dataclass(frozen=True)
class Fields:
    """A struct by value: what stands at an offset. Eight-byte fields that are not named are pointers."""

    at: Mapping[int, Argument]


@dataclass(frozen=True)
class Pointer:
    """A pointer to data that no control flow depends on."""


Argument = Pointer | Data | Fields | int | float
P = Pointer()


@dataclass(frozen=True)
class Launch:
    """One small launch of a kernel: `sources` are the parameters, or (parameter, offset), that copied rows lie in.

    `excepted`: why no proof of this launch is expected, and what covers it instead.
    """

    what: str
    grid: tuple[int, int, int]
    threads: int
    arguments: tuple[Argument, ...]
    shared: int = 0
    sources: tuple[int | tuple[int, int], ...] = ()
    excepted: str = ""


@dataclass(frozen=True)
class Verdict:
    """What sentryward said: its result, the first reason if that is not race_free, and how long it took."""

    result: str
    why: str
    seconds: float


def prove(
    ptx: str, entry: str, launch: Launch, program: Path, timeout_s: int = TIMEOUT_S
) -> Verdict:
    """The verdict on a launch; kept under build/races by the content of all that it depends on.

    Raises:
        ToolchainError: sentryward does not run.
    """
    text, arguments = rewritten(ptx, entry, launch)
    given: dict[str, Any] = {
        "schema": "spverify.kernel-input/v1",
        "entry": entry,
        "launch": {
            "grid_dim": [*launch.grid],
            "block_dim": [launch.threads, 1, 1],
            "dynamic_shared_bytes": launch.shared,
        },
        "arguments": [a for a in arguments if "value" in a],
        "shape_arrays": [a for a in arguments if "shapes" in a],
    }
    digest = hashlib.sha256(f"{_version(program)}\0{text}\0{json.dumps(given)}".encode())
    folder = BUILD / "races" / digest.hexdigest()[:24]
    kept = folder / "verdict.json"
    if kept.is_file():
        told = Verdict(**json.loads(kept.read_text(encoding="utf-8")))
        if told.result != "timeout" or told.seconds >= timeout_s:
            return told
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "kernel.ptx").write_text(text, encoding="utf-8")
    (folder / "input.json").write_text(json.dumps(given), encoding="utf-8")
    told = _run(program, folder, timeout_s)
    kept.write_text(json.dumps(asdict(told)), encoding="utf-8")
    return told


def _run(program: Path, folder: Path, timeout_s: int) -> Verdict:
    start = time.monotonic()
    command: list[str | Path] = [program, folder / "kernel.ptx", "--input", folder / "input.json"]
    done = subprocess.run(
        [*command, "--timeout", str(timeout_s)], capture_output=True, text=True, check=False
    )
    try:
        told = json.loads(done.stdout)
    except ValueError as error:
        raise ToolchainError(
            "sentryward gave no result",
            where=program,
            found=done.stderr[-500:] or done.stdout[:500],
        ) from error
    first: dict[str, Any] = next(iter(told.get("diagnostics") or ()), {})
    why = f"{first.get('code', '')}: {first.get('message', '')}".strip(": ")
    return Verdict(told["result"], why, time.monotonic() - start)


def find_sentryward() -> Path:
    """The program on PATH.

    Raises:
        ToolchainError: it is not installed.
    """
    found = shutil.which("sentryward")
    if found:
        return Path(found)
    raise ToolchainError(
        "`sentryward` is not installed",
        where="PATH",
        expected="sentryward of plugins/oracles.txt",
        hint="pip install -r plugins/oracles.txt, in an environment of its own if need be",
    )


def _version(program: Path) -> str:
    """Of what is installed: the size and time of the program are enough to notice another."""
    stat = program.stat()
    return f"{stat.st_size} {stat.st_mtime_ns}"


def rewritten(ptx: str, entry: str, launch: Launch) -> tuple[str, list[dict[str, Any]]]:
    """The module with `entry` made legible, and the arguments as sentryward takes them."""
    start = ptx.index(f".entry {entry}(")
    end = ptx.index("\n}", start)
    body = _reads_not_skipped(_without_bfi(ptx[start:end]))
    arguments: list[dict[str, Any]] = []
    declared = len(re.findall(rf"\.param [^\n]*\b{entry}_param_\d+", body.split("{")[0]))
    assert declared == len(launch.arguments), f"{entry} has {declared} parameters"
    for i, argument in enumerate(launch.arguments):
        name = f"{entry}_param_{i}"
        if isinstance(argument, Fields):
            body, given = _fields_apart(body, name, argument)
            arguments += given
        else:
            body = _annotated(body, name, argument)
            arguments += _given(name, argument, _declared_type(body, name))
    if launch.sources:
        body = _rows_in(body, [_name(entry, source) for source in launch.sources])
    return ptx[:start] + _whole_copies(body) + ptx[end:], arguments


def without_barriers(ptx: str, entry: str, *, last_only: bool = False) -> str:
    """The planted fault: the kernel without barriers, or without the last one in its text."""
    start = ptx.index(f".entry {entry}(")
    end = ptx.index("\n}", start)
    body = ptx[start:end]
    lines = [*re.finditer(r"^.*\bbar(\.warp)?\.sync\b[^\n]*\n", body, re.M)]
    assert lines, f"{entry} has no barrier"
    for line in reversed(lines[-1:] if last_only else lines):
        body = body[: line.start()] + body[line.end() :]
    return ptx[:start] + body + ptx[end:]


def _name(entry: str, source: int | tuple[int, int]) -> str:
    return (
        f"{entry}_param_{source}"
        if isinstance(source, int)
        else f"{entry}_param_{source[0]}_at{source[1]}"
    )


def _given(name: str, argument: Argument, kind: str) -> list[dict[str, Any]]:
    if isinstance(argument, Data):
        shapes = [list(argument.values)]
        return [{"parameter": name, "element_type": argument.type, "shapes": shapes}]
    if isinstance(argument, int | float):
        return [{"parameter": name, "type": kind, "value": argument}]
    return []


def _declared_type(body: str, name: str) -> str:
    found = re.search(rf"\.param \.(\w+) [^,\n]*\b{name}\b", body)
    assert found, f"{name} is not declared"
    return found[1]


def _annotated(body: str, name: str, argument: Argument) -> str:
    if not isinstance(argument, Pointer | Data):
        return body
    plain = rf"\.param \.u64 (\.ptr (\.global )?(\.align \d+ )?)?{name}\b"
    new, count = re.subn(plain, f".param .u64 .ptr .global .align 16 {name}", body, count=1)
    assert count == 1, f"{name} is no pointer"
    return new


def _without_bfi(body: str) -> str:
    numbers = iter(range(10**6))
    used: list[int] = []

    def spelled(m: re.Match[str]) -> str:
        out, value, into, at, width = m[1], m[2], m[3], int(m[4]), int(m[5])
        i, mask = next(numbers), (1 << width) - 1
        used.append(i)
        return (
            f"and.b32 %zlow{i}, {value}, {mask};\nshl.b32 %zmoved{i}, %zlow{i}, {at};\n"
            f"and.b32 %zrest{i}, {into}, {~(mask << at) & 0xFFFFFFFF};\nor.b32 {out}, %zmoved{i}, %zrest{i};"
        )

    body = re.sub(r"bfi\.b32\s+(%r\d+), (%r\d+), (%r\d+), (\d+), (\d+);", spelled, body)
    names = [f"%z{part}{i}" for i in used for part in ("low", "moved", "rest")]
    return _declaring(body, "b32", names)


def _reads_not_skipped(body: str) -> str:
    branch = r"(setp\.\w+\.f32 (%p\d+), [^;]*;\n)@\2 bra (\$L_\w+);\n(.*?)(?=\n\3:)"

    def always(m: re.Match[str]) -> str:
        return m[1] + m[4] if _only_reads(m[4], body) else m[0]

    return re.sub(branch, always, body, flags=re.S)


def _only_reads(stretch: str, body: str) -> bool:
    """No label, store, copy, atomic, barrier or branch; what is not a float is not used outside."""
    if re.search(r"^\$L|\b(st|atom|red|cp|bar|bra|membar|shfl|ret)\b", stretch, re.M):
        return False
    made = {
        register
        for op, text in _instructions(stretch)
        for register in re.findall(REGISTER, text.partition("[" if op.startswith("ld") else ",")[0])
    }
    around = body.replace(stretch, "")
    return not any(re.search(rf"{r}\b", around) for r in made if not r.startswith("%f"))


def _declaring(body: str, kind: str, names: Sequence[str]) -> str:
    lines = "".join(f".reg .{kind} {name};\n" for name in names)
    return body.replace("\n{\n", f"\n{{\n{lines}", 1)


def _fields_apart(body: str, name: str, fields: Fields) -> tuple[str, list[dict[str, Any]]]:
    types: dict[int, str] = {}

    def load(m: re.Match[str]) -> str:
        kind, offset = m[2], int(m[4] or 0)
        out = []
        for k, register in enumerate(re.findall(REGISTER, m[3])):
            at = offset + k * (int(kind[1:]) // 8)
            types[at] = kind
            out.append(f"ld.param.{kind} {register}, [{name}_at{at}];")
        return "\n".join(out)

    place = rf"\[{name}(?:\+(\d+))?\];"
    body = re.sub(
        rf"ld\.param\.(v\d\.)?([a-z]\d+)\s+(\{{[^}}]*\}}|{REGISTER}), {place}", load, body
    )
    assert not re.search(rf"\[{name}\b[+\]]", body), f"a field of {name} is read in another way"
    declared, given = [], []
    for at, kind in sorted(types.items()):
        field = f"{name}_at{at}"
        argument = fields.at.get(at, P)
        line = f".param .{kind} {field}"
        declared.append(_annotated(line, field, argument))
        given += _given(field, argument, kind)
    body, count = re.subn(
        rf"\.param \.align \d+ \.b8 {name}\[\d+\]", lambda _: ",\n".join(declared), body
    )
    assert count == 1, f"{name} is no struct"
    return body, given


def _whole_copies(body: str) -> str:
    return re.sub(
        rf"(cp\.async\.c\w\.shared\.global [^;]*?\], 16), {REGISTER};", lambda m: m[1] + ";", body
    )


def _rows_in(body: str, sources: Sequence[str]) -> str:
    """Copies whose source address came out of shared memory read the start of the first source instead."""
    never_stored(body, sources)
    held = set(_derived(body, lambda op, _: op.startswith("ld.shared") and op.endswith("64")))

    def read(m: re.Match[str]) -> str:
        return f"{m[1]}[%zsource]" if m[2] in held else m[0]

    body, copies = re.subn(rf"(cp\.async\.\S+ \[[^\]]+\], )\[({REGISTER})(?:\+\d+)?\]", read, body)
    assert copies, "no copy to rewrite"
    body = body.replace("\n{\n", f"\n{{\nld.param.u64 %zsource, [{sources[0]}];\n", 1)
    return _declaring(body, "b64", ["%zsource"])


def never_stored(body: str, sources: Sequence[str]) -> None:
    """Refuse if an address that a source went into is stored to or changed by an atomic."""
    own = set(_derived(body, lambda op, text: op.startswith("ld.param") and _reads(text, sources)))
    for op, text in _instructions(body):
        if op.startswith(("st.global", "atom", "red")) and not op.startswith(("atom.shared",)):
            address = re.findall(REGISTER, text.partition("[")[2].partition("]")[0])
            assert not own & set(address), (
                f"{op} {text} stores to a tensor that rows are copied from"
            )


def _reads(text: str, names: Sequence[str]) -> bool:
    return any(f"[{name}]" in text for name in names)


def _derived(body: str, begins: Any) -> Iterator[str]:
    """Registers that the result of an instruction `begins` accepts went into; loads end a chain."""
    steps = [(op, text, re.findall(REGISTER, text)) for op, text in _instructions(body)]
    found = {
        register
        for op, text, _ in steps
        if begins(op, text)
        for register in re.findall(REGISTER, text.partition("[")[0])
    }
    size = -1
    while size != len(found):
        size = len(found)
        for op, _, registers in steps:
            if not op.startswith(("ld.", "st.", "cp.", "bar", "bra", "mma")) and registers:
                out, *inputs = registers
                if found & set(inputs):
                    found.add(out)
    yield from found


def _instructions(body: str) -> Iterator[tuple[str, str]]:
    for m in re.finditer(r"^\s*(?:\{\s*)?(?:@!?%p\d+ )?([a-z][\w.:]*)\s+([^;\n]*);", body, re.M):
        yield m[1], m[2]
