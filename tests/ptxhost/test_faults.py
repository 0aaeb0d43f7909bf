"""What the runtime and the translator refuse, in their words. A fault ends the process: each runs in its own."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from ds4export.ptxhost.emit import translate
from ds4export.ptxhost.parse import PtxError, parse
from tests.ptxhost.harness import compiled, kernel, launch, module

_SHARED = ".shared .align 16 .b8 window[256];"
FAULTS = {
    "divergent barrier": (
        "setp.eq.s32 %p1, %r0, 3;\n@%p1 bra $L_other;\nbar.sync 0;\nbra $L_end;\n$L_other:\nbar.sync 0;\n$L_end:",
        "barrier 0: thread 0 waits for it at PTX line",
    ),
    "barrier after an exit": (
        "setp.eq.s32 %p1, %r0, 3;\n@%p1 ret;\nbar.sync 0;",
        "waits for ever at a barrier; 1 of 64 threads of the block have exited",
    ),
    "partial exchange": (
        "setp.eq.s32 %p1, %r0, 3;\n@%p1 ret;\nshfl.sync.bfly.b32 %r1, %r0, 1, 31, 0xffffffff;",
        "waits for ever in a warp exchange",
    ),
    "one exchange at two places": (
        "setp.eq.s32 %p1, %r0, 3;\n@%p1 bra $L_other;\nshfl.sync.bfly.b32 %r1, %r0, 1, 31, 0xffffffff;\nbra $L_end;\n"
        "$L_other:\nshfl.sync.bfly.b32 %r1, %r0, 1, 31, 0xffffffff;\n$L_end:",
        "mask ffffffff: other lanes of the mask wait at PTX line",
    ),
    "a lane outside its mask": (
        "shfl.sync.bfly.b32 %r1, %r0, 1, 31, 0xfffffff7;",
        "lane 3 is not in its own mask fffffff7",
    ),
    "a lane that is not there": (
        "setp.ge.u32 %p1, %r0, 8;\n@%p1 ret;\nshfl.sync.bfly.b32 %r1, %r0, 8, 31, 0xff;",
        "reads lane 8, which is not in mask 000000ff",
    ),
    "misaligned load": (
        "add.s64 %rd1, %rd0, 4;\nld.global.v2.b32 {%r1, %r2}, [%rd1];",
        "address of 8 bytes is misaligned",
    ),
    "misaligned copy": (
        "mov.u32 %r1, window;\nadd.s64 %rd1, %rd0, 4;\ncp.async.cg.shared.global [%r1], [%rd1], 16;",
        "cp.async from a misaligned address",
    ),
    "barrier of too many": ("bar.sync 1, 96;", "barrier 1 for 96 threads of a block of 64"),
    "trap": ("setp.eq.s32 %p1, %r0, 63;\n@%p1 trap;", "thread (63,0,0), PTX line"),
}
LIBRARY_TEXT = module(
    *(kernel(f"fault_{i}", 1, body, _SHARED) for i, (body, _) in enumerate(FAULTS.values()))
)


@pytest.mark.parametrize("name", FAULTS)
def test_fault_says_where(name: str) -> None:
    index = list(FAULTS).index(name)
    library = compiled(LIBRARY_TEXT, "faults")
    script = (
        "import numpy as np\nfrom pathlib import Path\nfrom tests.ptxhost.harness import launch\n"
        f"launch(Path({str(library)!r}), 'fault_{index}', [np.zeros(64, np.float64)], threads=64)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 86, done.stderr
    assert f"KERNEL FAULT: fault_{index}, block (0,0,0), thread (" in done.stderr
    assert FAULTS[name][1] in done.stderr


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("frobnicate.f32 %f1, %f2;", "unknown opcode"),
        ("add.rn.ftz.sat.f32 %f1, %f2, %f3;", "unknown opcode"),
        ("ld.global.v3.f32 {%f1, %f2, %f3}, [%rd0];", "unknown opcode"),
        ("ld.global.v2.f32 %f1, [%rd0];", "the number of registers is not that of the opcode"),
        ("add.f32 %f1, %f2;", "3 operands expected"),
        ("add.f32 %tid.x, %f2, %f3;", "`%tid.x` cannot be written"),
        ("mov.u32 %r1, %clock;", "operand"),
        (
            "mma.sync.aligned.m16n8k16.row.row.f32.bf16.bf16.f32 {%f1}, {%r1}, {%r2}, {%f1};",
            "this shape and these types",
        ),
        ("atom.global.add.b32 %r1, [%rd0], %r2;", "`add` has no type `b32`"),
        ("cp.async.cg.shared.global [%r1], [%rd0], 8;", "cp.async.cg does not copy 8 bytes"),
    ],
)
def test_what_is_not_known_is_refused_with_its_line(body: str, why: str) -> None:
    text = module(kernel("k", 1, body, _SHARED))
    line = text[: text.index(body)].count("\n") + 1
    with pytest.raises(PtxError, match=why.replace("`", "."), check=lambda e: e.line == line):
        translate(parse(text), "k.ptx")


def test_functions_are_refused() -> None:
    with pytest.raises(PtxError, match="functions that are not inlined"):
        parse(module(".visible .func (.param .b32 r) f (.param .b32 x);"))


def test_a_kernel_that_does_not_fault_returns() -> None:
    out = np.zeros(64, np.uint32)
    body = "mul.wide.u32 %rd1, %r0, 4;\nadd.s64 %rd2, %rd0, %rd1;\nbar.sync 0;\nst.global.u32 [%rd2], %r0;"
    launch(compiled(module(kernel("fine", 1, body)), "fine"), "fine", [out], threads=64)
    np.testing.assert_array_equal(out, np.arange(64, dtype=np.uint32))
