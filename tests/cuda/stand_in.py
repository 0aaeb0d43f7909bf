"""The kernel library on the stand-in CUDA runtime: the same binding, tensors on the CPU, in a process of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ds4export.cuda.build import KernelBuild, Target, build_library
from ds4export.ptxhost.build import Variant, build_host
from ds4export.ptxhost.library import embedded_ptx
from ds4export.ptxhost.toolchain import find_toolchain

ARCHITECTURE = 80


@dataclass(frozen=True)
class StandIn:
    """A library and the folder of the runtime that its process must find."""

    build: KernelBuild
    runtime_folder: Path

    def settings(self) -> dict[str, str]:
        """What the environment of a process that loads the library must have."""
        return {
            "LD_LIBRARY_PATH": str(self.runtime_folder),
            "DS4_HOST_CAPABILITY": str(ARCHITECTURE),
        }


def build_stand_in(ops: Sequence[str] | None) -> StandIn:
    """Compile the kernels of these ops (all by default), translate their PTX, link it into the stand-in.

    Raises:
        ToolchainError: a compiler, cuobjdump or a header is missing, or a compile fails.
    """
    tools = find_toolchain()
    target = Target(ARCHITECTURE, for_stand_in=True)
    build = build_library(target, ops=ops, nvcc=tools.nvcc)
    files = embedded_ptx(build.library, tools.cuobjdump)
    host = build_host(files, ARCHITECTURE, Variant.PLAIN, tools)
    return StandIn(build, host.runtime_folder)
