"""The artefact under test, cut into its parts: nodes by path, half layers, bodies, bound weights.

Owns the flat view of an artefact's graphs: node paths are those of `inline_layers`. Refuses a graph that holds nodes
other than ds4 ops between its inputs and outputs (design 5).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

from ds4export.artefact import Artefact
from ds4export.artefact.manifest import STATE, WEIGHT, TensorInfo
from ds4export.errors import ParityError
from ds4export.graph.assemble import LAYER_DOMAIN
from ds4export.ops import ALL_OPS
from ds4export.ops._define import DOMAIN
from ds4export.passes.inline_layers import inline_layers

MAIN, MTP = "main", "mtp"
Array = NDArray[Any]


@dataclass(frozen=True)
class OpNode:
    """One ds4 node of a flat graph; inputs and outputs are value names, attributes in schema order."""

    graph: str
    path: str
    op: str
    attributes: tuple[Any, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Half:
    """One call of a layer function: `layers.3/attn` or `layers.3/ffn`."""

    graph: str
    path: str
    function: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    @property
    def layer(self) -> str:
        return self.path.split("/")[0]


@dataclass(frozen=True)
class GraphParts:
    """One ONNX file: as it is, flattened, and as lists."""

    name: str
    model: ir.Model
    flat: ir.Model
    nodes: tuple[OpNode, ...]
    halves: tuple[Half, ...]
    constants: Mapping[str, Array]


class Subject:
    """An open artefact seen as parts that can be run one by one."""

    def __init__(self, artefact: Artefact) -> None:
        self.artefact = artefact
        self.manifest = artefact.manifest
        self.graphs = {name: _parts(artefact, name) for name in self.manifest.graphs}
        self._weights: dict[str, Array] = {}

    @cached_property
    def infos(self) -> dict[str, TensorInfo]:
        """Every graph input by name."""
        return {i.name: i for g in self.manifest.graphs.values() for i in g.inputs}

    @cached_property
    def ops(self) -> frozenset[str]:
        """The ops that the artefact uses."""
        return frozenset(n.op for g in self.graphs.values() for n in g.nodes)

    def is_weight(self, name: str) -> bool:
        return name in self.infos and self.infos[name].kind == WEIGHT

    def is_state(self, name: str) -> bool:
        return name in self.infos and self.infos[name].kind == STATE

    def fixed(self, graph: str, name: str) -> Array | None:
        """The value of a weight, as the manifest binds it, or of a constant; None for anything else."""
        if self.is_weight(name):
            return self.artefact.weight(self.infos[name])
        return self.graphs[graph].constants.get(name)


def _parts(artefact: Artefact, name: str) -> GraphParts:
    path = artefact.graph_path(name)
    model, flat = ir.load(path), inline_layers(ir.load(path))
    strangers = [n.name for n in flat.graph if n.domain != DOMAIN or n.op_type not in ALL_OPS]
    if strangers:
        raise ParityError(
            "the graph computes outside the ds4 ops",
            where=path,
            found=", ".join(str(s) for s in strangers[:5]),
            expected="ds4 nodes only",
            hint="export again with this version of ds4export",
        )
    nodes = tuple(_op_node(name, node) for node in flat.graph)
    halves = tuple(
        Half(name, n.name or "", n.op_type, _names(n.inputs), _names(n.outputs))
        for n in model.graph
        if n.domain == LAYER_DOMAIN
    )
    weights = artefact.manifest.weights
    constants = {
        key: value.const_value.numpy()
        for key, value in flat.graph.initializers.items()
        if key not in weights and value.const_value is not None
    }
    return GraphParts(name, model, flat, nodes, halves, constants)


def _op_node(graph: str, node: ir.Node) -> OpNode:
    names = ALL_OPS[node.op_type].attributes()
    attributes = tuple(node.attributes[a].value for a in names if a in node.attributes)
    inputs, outputs = _names(node.inputs), _names(node.outputs)
    return OpNode(graph, node.name or "", node.op_type, attributes, inputs, outputs)


def _names(values: Iterable[ir.Value | None]) -> tuple[str, ...]:
    return tuple("" if v is None else v.name or "" for v in values)
