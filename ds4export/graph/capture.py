"""Tracing: a module on the meta device to a list of `ds4` op calls with symbolic shapes.

`torch.export` does the tracing; the walk over its graph accepts placeholders, `ds4` ops and getitem, and nothing else.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
import torch
import torch.fx.experimental._config as _export_config
from torch import Tensor, nn

from ds4export.errors import ExportError
from ds4export.ops import ALL_OPS
from ds4export.ops._define import DOMAIN

_DTYPES = {
    torch.bfloat16: ir.DataType.BFLOAT16,
    torch.float32: ir.DataType.FLOAT,
    torch.int64: ir.DataType.INT64,
    torch.int8: ir.DataType.INT8,
}
# sizes of the traced example, all different and none a size of a model, so that symbols do not merge
_EXAMPLE = {"B": 3, "T": 5, "S": 7, "R": 2}


@dataclass(frozen=True)
class Argument:
    """One input of a traced module: dims are ints or names of symbolic dimensions."""

    name: str
    dtype: torch.dtype
    dims: tuple[int | str, ...]

    def example(self) -> Tensor:
        shape = [d if isinstance(d, int) else _EXAMPLE.get(d, 11) for d in self.dims]
        return torch.empty(shape, dtype=self.dtype, device="meta")

    def dynamic(self) -> dict[int, Any]:
        auto = torch.export.Dim.AUTO
        return {i: auto for i, d in enumerate(self.dims) if isinstance(d, str)}


@dataclass(frozen=True)
class Captured:
    """A traced module as onnx_ir nodes, ready to become a function or part of a graph."""

    arguments: tuple[ir.Value, ...]
    weights: tuple[ir.Value, ...]  # named by module path
    nodes: tuple[ir.Node, ...]
    outputs: tuple[ir.Value, ...]


class _Traced(nn.Module):
    """Hands the arguments on as one list, whatever their number."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, arguments: list[Tensor]) -> Any:
        return self.module(*arguments)


def capture(module: nn.Module, arguments: Sequence[Argument], outputs: Sequence[str]) -> Captured:
    """Trace `module(*arguments)`; its weights become inputs of their own.

    Raises:
        ExportError: the module computes outside the ds4 ops.
    """
    program = _export(module, arguments)
    values: dict[str, tuple[ir.Value, ...]] = {}
    symbols: dict[str, str] = {}
    user_inputs, weights = [], []
    buffers = program.graph_signature.inputs_to_buffers
    nodes: list[ir.Node] = []
    names = iter(arguments)
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name in buffers:
            path = buffers[node.name].removeprefix("module.")
            values[node.name] = (_value(path, node.meta["val"], {}),)
            if node.users:
                weights.append(values[node.name][0])
        elif node.op == "placeholder":
            argument = next(names)
            symbols |= _symbols(node.meta["val"], argument)
            values[node.name] = (_value(argument.name, node.meta["val"], symbols),)
            user_inputs.append(values[node.name][0])
        elif node.op == "call_function" and node.target is operator.getitem:
            source, index = node.args
            values[node.name] = (values[source.name][index],)
        elif node.op == "call_function":
            made = _op_node(node, values, symbols)
            nodes.append(made)
            values[node.name] = tuple(made.outputs)
        elif node.op == "output":
            results = [values[n.name][0] for n in node.args[0]]
    for value, name in zip(results, outputs, strict=True):
        value.name = name
    _make_names_unique(nodes)
    return Captured(tuple(user_inputs), tuple(weights), tuple(nodes), tuple(results))


def _export(module: nn.Module, arguments: Sequence[Argument]) -> torch.export.ExportedProgram:
    oblivious = _export_config.patch(backed_size_oblivious=True)  # type: ignore[attr-defined]
    with oblivious, torch.no_grad():
        return torch.export.export(
            _Traced(module),
            ([a.example() for a in arguments],),
            dynamic_shapes=([a.dynamic() for a in arguments],),
        )


def _symbols(value: Tensor, argument: Argument) -> dict[str, str]:
    pairs = zip(value.shape, argument.dims, strict=True)
    return {str(size): dim for size, dim in pairs if isinstance(dim, str)}


def _value(name: str, meta: Tensor, symbols: dict[str, str]) -> ir.Value:
    return ir.Value(
        name=name, type=ir.TensorType(_DTYPES[meta.dtype]), shape=_shape(meta.shape, symbols)
    )


def _shape(shape: Sequence[Any], symbols: dict[str, str]) -> ir.Shape:
    return ir.Shape([d if isinstance(d, int) else symbols.get(str(d), str(d)) for d in shape])


def _op_node(
    node: torch.fx.Node, values: dict[str, tuple[ir.Value, ...]], symbols: dict[str, str]
) -> ir.Node:
    name = str(node.target)
    domain, _, op_name = name.partition(".")
    op_name = op_name.removesuffix(".default")
    if domain != DOMAIN:
        raise ExportError(
            f"the model computes outside the ds4 ops: `{name}`",
            where=_path(node),
            found=name,
            expected="ds4 ops only",
            hint="put the computation into an op: see docs/how-to/add-an-op.md",
        )
    op = ALL_OPS[op_name]
    count = len(op.inputs)
    arguments: list[Any] = list(node.args)
    inputs = [values[a.name][0] for a in arguments[:count]]
    attributes = [
        ir.convenience.convert_attribute(k, v)
        for k, v in zip(op.attributes(), arguments[count:], strict=True)
    ]
    path = "/".join(p for p in (_path(node).replace(".", "/"), op_name) if p)
    made = ir.Node(DOMAIN, op_name, inputs, attributes, num_outputs=len(op.outputs), name=path)
    metas = node.meta["val"]
    for out, meta, suffix in zip(
        made.outputs,
        metas if isinstance(metas, (tuple, list)) else (metas,),
        op.outputs,
        strict=True,
    ):
        out.name, out.type = f"{path}:{suffix}", ir.TensorType(_DTYPES[meta.dtype])
        out.shape = _shape(meta.shape, symbols)
    return made


def _path(node: torch.fx.Node) -> str:
    """Path of the module whose forward made the node, below the traced half layer."""
    stack = [entry[0] for entry in node.meta.get("nn_module_stack", {}).values()]
    path = stack[-1] if stack else ""
    parts = path.split(".")
    return ".".join(p for p in parts if p not in ("module", "layer", "attn", "ffn", ""))


def _make_names_unique(nodes: Sequence[ir.Node]) -> None:
    seen: dict[str, int] = {}
    for node in nodes:
        assert node.name is not None
        seen[node.name] = seen.get(node.name, 0) + 1
        if seen[node.name] > 1:
            suffix = f"_{seen[node.name]}"
            for out in node.outputs:
                if out.name and out.name.startswith(f"{node.name}:"):
                    out.name = out.name.replace(":", f"{suffix}:", 1)
            node.name += suffix
