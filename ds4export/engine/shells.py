"""A plugin library that does nothing: the shell of every op, without a kernel behind it.

For tests of the lowering and the builder where kernels are not the subject. It is compiled from the shell that the real
library is made of, so names, fields, types, shapes and aliases are those that ship; each launch refuses. It exports
`ds4_does_nothing`, and an engine built with it says so in its manifest.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from ds4export.artefact.manifest import OP_VERSIONS
from ds4export.errors import ToolchainError
from ds4export.ptxhost.toolchain import PLUGINS, find_toolchain

MARK = "ds4_does_nothing"
_SOURCE = """\
#include "common/registry.h"

#include "common/op_table.h"

namespace ds4 {
namespace {
Status refuse(Call const&) { return Status::error("this library has no kernels"); }
size_t no_workspace(Call const&) { return 0; }
}  // namespace

std::span<RegisteredOp const> registered_ops() {
  static RegisteredOp const ops[] = {
OPS  };
  return ops;
}
}  // namespace ds4

extern "C" {
__attribute__((visibility("default"))) int MARK() { return 1; }
// In place of the CUDA runtime, which nothing here needs.
cudaError_t cudaMemcpyAsync(void*, void const*, size_t, cudaMemcpyKind, cudaStream_t) { return cudaErrorNotSupported; }
char const* cudaGetErrorString(cudaError_t) { return "this library has no kernels"; }
}
"""


def build_shells(folder: Path, without: tuple[str, ...] = ()) -> Path:
    """Compile the library into `folder`; the ops in `without` are left out of it.

    Raises:
        ToolchainError: a compiler or a header is missing, or the compiler refuses.
    """
    tools = find_toolchain()
    library = folder / "libds4plugins_shells.so"
    source = folder / "shells.cpp"
    ops = "".join(
        f"      {{&{op}::INFO, refuse, no_workspace}},\n" for op in OP_VERSIONS if op not in without
    )
    source.write_text(_SOURCE.replace("OPS", ops).replace("MARK", MARK))
    command = [
        *(os.environ.get("CXX", "g++"), "-shared", "-fPIC", "-std=c++20", "-O1"),
        *("-fvisibility=hidden", f"-I{PLUGINS}", f"-I{PLUGINS / 'common'}"),
        *("-isystem", str(tools.tensorrt_include), "-isystem", str(tools.cuda_include)),
        *(str(source), str(PLUGINS / "common/plugin.cpp"), "-o", str(library)),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ToolchainError(
            "the library of shells cannot be compiled", where=source, found=done.stderr.strip()
        )
    return library
