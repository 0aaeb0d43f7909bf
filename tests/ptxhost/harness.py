"""PTX written by a test, translated, compiled with the runtime, and launched on numpy arrays."""

from __future__ import annotations

import ctypes
import hashlib
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ds4export.ptxhost.build import CACHE, HOST, TRANSLATION
from ds4export.ptxhost.emit import translate
from ds4export.ptxhost.parse import parse

DRIVER = Path(__file__).with_name("driver.cpp")
RUNTIME = [HOST / "block.cpp", HOST / "fibre.cpp", HOST / "warp.cpp", DRIVER]
ORDERS = (0, 1, 2)


def compiled(ptx: str, name: str) -> Path:
    """A shared library of the kernels of `ptx`, kept by the content of all that is in it."""
    text = translate(parse(ptx), f"{name}.ptx")
    parts = [text, *(p.read_text(encoding="utf-8") for p in (*RUNTIME, *sorted(HOST.glob("*.h"))))]
    digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
    library = CACHE / "tests" / f"{name}-{digest}.so"
    if not library.exists():
        library.parent.mkdir(parents=True, exist_ok=True)
        source = library.with_suffix(".cpp")
        source.write_text(text, encoding="utf-8")
        command = ["g++", "-std=c++20", "-O0", "-g0", "-fPIC", "-shared", *TRANSLATION, f"-I{HOST}"]
        done = subprocess.run(
            [*command, source, *RUNTIME, "-o", library], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[-3000:]
    return library


def launch(
    library: Path,
    kernel: str,
    arguments: Sequence[np.ndarray | int],
    *,
    threads: int,
    blocks: int = 1,
    shared: int = 0,
    order: int = 0,
    copies_at_issue: bool = False,
) -> None:
    """Arrays are passed as pointers, numbers as 32-bit values."""
    held = [
        ctypes.c_void_p(a.ctypes.data) if isinstance(a, np.ndarray) else ctypes.c_uint32(a)
        for a in arguments
    ]
    pointers = (ctypes.c_void_p * len(held))(*(ctypes.addressof(h) for h in held))
    run = ctypes.CDLL(str(library)).launch
    run.argtypes = [ctypes.c_char_p, ctypes.c_uint, ctypes.c_uint, ctypes.c_ulong]
    run.argtypes += [ctypes.c_void_p, ctypes.c_int, ctypes.c_int]
    code = run(kernel.encode(), blocks, threads, shared, pointers, order, int(copies_at_issue))
    assert code == 0, f"no kernel {kernel}"


def module(*kernels: str) -> str:
    """The head of a PTX file and its kernels."""
    return "\n".join([".version 9.0", ".target sm_80", ".address_size 64", *kernels])


def kernel(name: str, num_pointers: int, body: str, registers: str = "") -> str:
    """A kernel whose parameters are pointers, in %rd0, %rd1, …; %tid.x is in %r0."""
    parameters = ",\n".join(f".param .u64 {name}_param_{i}" for i in range(num_pointers))
    loads = "\n".join(f"ld.param.u64 %rd{i}, [{name}_param_{i}];" for i in range(num_pointers))
    declared = ".reg .pred %p<9>;\n.reg .b16 %rs<9>;\n.reg .b32 %r<40>;\n.reg .f32 %f<9>;\n.reg .b64 %rd<40>;"
    head = f".visible .entry {name}({parameters})\n{{\n{declared}\n{registers}\n{loads}\n"
    return f"{head}mov.u32 %r0, %tid.x;\n{body}\nret;\n}}\n"
