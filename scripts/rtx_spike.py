"""Build a flat graph with TensorRT-RTX, ahead of time and without a GPU, every op a plugin that does nothing.

Usage: python scripts/rtx_spike.py GRAPH.onnx --headers DIR [--target SM80 SM89 SM120] [--context N]

GRAPH is the result of TENSORRT_PIPELINE, shapes included. DIR holds NvInfer.h. The plugin library is
rtx_stubs.cpp with a table made from ALL_OPS: name, tensors, dtypes, aliases, attributes as plugin fields; the shapes
of outputs are read off the graph. Says whether the interfaces of the ops can serve plugins; computes nothing.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib
import os
import re
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import onnx_ir as ir

from ds4export.ops import ALL_OPS, OpDef

TYPES = {"boundary": "BF16", "bf16": "BF16", "float32": "FLOAT", "bytes": "INT8", "int64": "INT64"}
FIELDS = {"int": "INT64", "float": "FLOAT32", "str": "CHAR"}
STUBS = Path(__file__).with_name("rtx_stubs.cpp")
# smallest, usual and largest size; the other dimensions are rows and slots of state
STEP = {"B": (1, 1, 4), "T": (1, 16, 64), "R": (1, 1, 4)}


def braces(parts: Any) -> str:
    return "{" + ", ".join(parts) + "}"


def dim_rule(nodes: list[ir.Node], output: int, axis: int) -> str:
    """The input's dimension that an output dimension equals at every call, else its constant size."""
    shapes = [[list(v.shape) for v in n.inputs] for n in nodes]
    wanted = [n.outputs[output].shape[axis] for n in nodes]
    for i, shape in enumerate(shapes[0]):
        for j in range(len(shape)):
            if all(s[i][j] == w for s, w in zip(shapes, wanted, strict=True)):
                return braces((str(i), str(j)))
    op = nodes[0].op_type
    assert len({str(w) for w in wanted}) == 1, f"{op}: axis {axis} of output {output} has no rule"
    return braces(("-1", str(int(wanted[0]))))


def shape_rules(nodes: list[ir.Node]) -> str:
    ranks = enumerate(len(v.shape) for v in nodes[0].outputs)
    return braces(braces(dim_rule(nodes, o, a) for a in range(rank)) for o, rank in ranks)


def op_text(op: OpDef, nodes: list[ir.Node]) -> str:
    """One op as an initialiser of `struct Op`."""
    names, aliases = list(op.inputs), op.aliases or {}
    by_rank: dict[int, list[ir.Node]] = {}
    for node in nodes:
        by_rank.setdefault(len(node.inputs[0].shape), []).append(node)
    fields = (a.split() for a in re.findall(r"(?:int|float|str) \w+", op.schema))
    parts = (
        f'"{op.name}"',
        braces(f"DataType::k{TYPES[k]}" for k in (*op.inputs.values(), *op.outputs.values())),
        str(len(names)),
        braces(braces((str(rank), shape_rules(some))) for rank, some in by_rank.items()),
        braces(str(names.index(aliases[o])) if o in aliases else "-1" for o in op.outputs),
        braces(f'{{"{name}", PluginFieldType::k{FIELDS[kind]}}}' for kind, name in fields),
    )
    return "Op" + braces(parts)


def compile_plugins(model: ir.Model, headers: str, folder: Path) -> Path:
    by_op: dict[str, list[ir.Node]] = {}
    for node in model.graph:
        by_op.setdefault(node.op_type, []).append(node)
    table = ",\n".join(op_text(ALL_OPS[name], nodes) for name, nodes in by_op.items())
    (folder / "ops.inc").write_text(table)
    library = folder / "libstubs.so"
    cuda = f"{os.environ.get('CUDA_HOME', '/usr/local/cuda')}/include"
    command = ["g++", "-shared", "-fPIC", "-std=c++17", "-I", folder, STUBS, "-o", library]
    subprocess.run([*command, "-isystem", headers, "-isystem", cuda], check=True)
    return library


def open_tensorrt(folder: Path) -> Any:
    """The module; the wheel lacks the name under which the parser opens the library, an empty one cures it."""
    trt = importlib.import_module("tensorrt_rtx")
    libs = Path(importlib.import_module("tensorrt_rtx_libs").__file__ or "").parent
    shim, real = folder / "shim.so", libs / "libtensorrt_rtx.so.1"
    link = ["-Wl,--no-as-needed", "-Wl,-soname,libtensorrt_rtx.so", "-x", "none", real]
    subprocess.run(
        ["gcc", "-shared", "-fPIC", "-x", "c", "/dev/null", "-o", shim, *link], check=True
    )
    ctypes.CDLL(str(shim))
    return trt


def build(trt: Any, builder: Any, logger: Any, model: ir.Model, target: str, context: int) -> str:
    network = builder.create_network(0)
    parser, started = trt.OnnxParser(network, logger), time.perf_counter()
    if not parser.parse(ir.to_proto(model).SerializeToString()):
        return f"{target}  {[parser.get_error(i).desc() for i in range(parser.num_errors)]}"
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(trt.ComputeCapability, target), 0)
    config.set_preview_feature(trt.PreviewFeature.ALIASED_PLUGIN_IO_10_03, True)
    for value in model.graph.inputs:
        other = (1, 4, context)
        dims = [(d,) * 3 if isinstance(d, int) else STEP.get(str(d), other) for d in value.shape]
        if any(len(set(d)) > 1 for d in dims):
            profile.set_shape(value.name, *zip(*dims, strict=True))
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        return f"{target}  not built"
    records = len(re.findall(rb"[pP]luginType", bytes(plan)))
    return (
        f"{target}  {len(model.graph)} ds4 nodes  {records} plugin records  "
        f"{len(model.graph.inputs)} inputs  {time.perf_counter() - started:.2f} s  plan {plan.nbytes:,} bytes"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("graph", type=Path)
    parser.add_argument("--headers", required=True)
    parser.add_argument("--target", nargs="+", default=["SM80", "SM89", "SM120"])
    parser.add_argument("--context", type=int, default=1024)
    args = parser.parse_args()
    model = ir.load(args.graph)
    with tempfile.TemporaryDirectory() as name:
        trt = open_tensorrt(Path(name))
        logger = trt.Logger(trt.Logger.ERROR)
        builder = trt.Builder(logger)  # before load_library, so that a refusal is logged
        library = compile_plugins(model, args.headers, Path(name))
        assert trt.get_plugin_registry().load_library(str(library)), "the library was refused"
        for target in args.target:
            print(build(trt, builder, logger, model, target, args.context))
        created = ctypes.CDLL(str(library)).created
        created.restype = ctypes.c_char_p
        lines = created().decode().splitlines()
    print(f"{len(lines)} plugins created; the first of each op:")
    print(*{line.split()[0]: line for line in reversed(lines)}.values(), sep="\n")


if __name__ == "__main__":
    main()
