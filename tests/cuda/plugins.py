"""The plugin host of plugins/host on the real CUDA runtime: every plugin's whole life, where TensorRT's headers are.

The host and the library are those of the tests without a GPU; only the runtime under them is NVIDIA's.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ds4export.cuda.build import FOLDER, Target, compile_objects, run_compiler
from ds4export.errors import ToolchainError
from ds4export.ops import ALL_OPS
from ds4export.ptxhost.build import HOST, HOST_SOURCES, HostBuild, Variant
from ds4export.ptxhost.plugin_host import HostFaultError, PluginHost, RefusalError
from tests.cuda.cases import cases_of


@dataclass
class PluginRun:
    """What the host found."""

    summary: str = ""
    wrong: list[str] = field(default_factory=list)
    not_run: list[str] = field(default_factory=list)


def tensorrt_include() -> Path | None:
    """The folder of NvInfer.h below TENSORRT_ROOT."""
    root = os.environ.get("TENSORRT_ROOT")
    folder = Path(root) / "include" if root else None
    return folder if folder and (folder / "NvInfer.h").is_file() else None


def check_plugins(ops: Sequence[str], target: Target, nvcc: Path, deadline: float) -> PluginRun:
    """Build library and host, run the cases of each op."""
    include = tensorrt_include()
    if include is None:
        return PluginRun(
            "not run: no NvInfer.h below TENSORRT_ROOT; the launchers ran through the C ABI"
        )
    try:
        build, library = build_plugins(ops, target, nvcc, include)
    except ToolchainError as error:
        return PluginRun("does not build", wrong=[f"plugin host: {error}"])
    return run_plugins(ops, build, library, deadline)


def build_plugins(
    ops: Sequence[str], target: Target, nvcc: Path, include: Path
) -> tuple[HostBuild, Path]:
    """The plugin library and the host, over the real runtime.

    Raises:
        ToolchainError: a compile fails.
    """
    headers = ("-isystem", str(include))
    shell = target.sources / "common/plugin.cpp"
    objects = compile_objects(target, ops, nvcc, more=(shell,), flags=headers)
    folder = FOLDER / f"plugins-sm_{target.architecture}"
    folder.mkdir(parents=True, exist_ok=True)
    library, program = folder / "libds4plugins.so", folder / "plugin_host"
    run_compiler([nvcc, *target.link_flags(), *objects, "-o", library])
    sources = [HOST / name for name in HOST_SOURCES]
    cudart = target.link_flags()[1:]
    run_compiler(
        [nvcc, *cudart, "-std=c++20", "-O1", f"-I{HOST}", *headers, *sources, "-ldl", "-o", program]
    )
    return HostBuild(program, folder, Variant.PLAIN, target.architecture), library


def run_plugins(ops: Sequence[str], build: HostBuild, library: Path, deadline: float) -> PluginRun:
    """Every case of each op; a process that dies is replaced for the next op."""
    from tests.plugins.host import check_case

    found, num_cases = PluginRun(), 0
    for number, op in enumerate(ops):
        if time.monotonic() > deadline:
            found.not_run.append(f"plugin host {', '.join(ops[number:])}: out of time")
            break
        with PluginHost(build, library) as host:
            try:
                for case in cases_of(op):
                    check_case(host, ALL_OPS[op], case)
                    num_cases += 1
            except (AssertionError, HostFaultError, RefusalError) as error:
                found.wrong.append(f"plugin host {op} {case.name}: {str(error).splitlines()[0]}")
    found.summary = f"{num_cases} cases of {len(ops)} plugins, {len(found.wrong)} wrong"
    return found
