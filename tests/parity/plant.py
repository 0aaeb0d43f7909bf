"""A copy of an artefact with something wrong in it: bodies, wiring, constants, bindings or bytes of weights.

Afterwards the copy is consistent, hashes included: it opens like any artefact.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ds4export.artefact import open_artefact_folder
from ds4export.artefact.manifest import ARTEFACT, WeightSource
from ds4export.artefact.writer import write_file, write_manifest
from ds4export.ops import ALL_OPS
from ds4export.ops._body import BodyOptions
from ds4export.ops._define import DOMAIN
from tests.parity.mutate import Edit, mutated_op

PLANTED = "planted.bin"
Array = NDArray[Any]


class Plant:
    """`folder` becomes a copy of `artefact`; edits are written by `save`."""

    def __init__(self, artefact: Path, folder: Path) -> None:
        shutil.copytree(artefact, folder)
        self.folder = folder
        self.artefact = open_artefact_folder(artefact)
        self.manifest = self.artefact.manifest
        self.models = {n: ir.load(folder / g.file) for n, g in self.manifest.graphs.items()}
        self.bytes = b""

    def body(
        self,
        op: str,
        *edits: Edit,
        graph: str = "",
        attributes: Mapping[str, Any] | None = None,
    ) -> None:
        """Rebuild the body of an op with edits of its source, or with other attributes, in one graph or all."""
        definition = mutated_op(op, edits) if edits else ALL_OPS[op]
        options = BodyOptions(official=self.manifest.official)
        hit = 0
        for name, model in self.models.items():
            if graph not in ("", name):
                continue
            for node in _nodes(model, op):
                known = {a: node.attributes[a].value for a in definition.attributes()}
                function = definition.function(known | dict(attributes or {}), options)
                model.functions[function.identifier()] = function
                hit += 1
                break
        assert hit, f"no graph has a node of `{op}`"

    def rewire(self, node: str, index: int, value: str, *, function: str = "") -> None:
        """Let input `index` of a node of the main graph, or of a layer function, read another value."""
        model = self.models["main"]
        scope: Any = model.graph
        if function:
            scope = next(f for f in model.functions.values() if f.name == function)
        found = next(n for n in scope if n.name == node)
        values = {v.name: v for v in (*scope.inputs, *(o for n in scope for o in n.outputs))}
        if not function:
            values |= model.graph.initializers
        found.replace_input_with(index, values[value])

    def swap_inputs(self, graph: str, first: str, second: str) -> None:
        """Exchange all uses of two graph inputs."""
        values = {v.name: v for v in self.models[graph].graph.inputs}
        a, b = values[first], values[second]
        uses = [(u.node, u.idx, b) for u in a.uses()] + [(u.node, u.idx, a) for u in b.uses()]
        for node, index, value in uses:
            node.replace_input_with(index, value)

    def constant(self, name: str, change: Callable[[Array], Array]) -> None:
        """Change a constant wherever it stands."""
        for model in self.models.values():
            value = model.graph.initializers.get(name)
            if value is not None and value.const_value is not None:
                made = change(value.const_value.numpy().copy())
                value.const_value = ir.tensor(made, name=name)

    def bind(self, name: str, other: str) -> None:
        """Let a weight lie where another one of its size lies."""
        weights = dict(self.manifest.weights)
        assert weights[name].nbytes == weights[other].nbytes, f"{name} and {other} differ in size"
        weights[name] = weights[other]
        self.manifest = replace(self.manifest, weights=weights)

    def weight(self, name: str, change: Callable[[Array], Array]) -> None:
        """Give a weight other bytes, in a file of the artefact."""
        infos = {i.name: i for g in self.manifest.graphs.values() for i in g.inputs}
        content = np.ascontiguousarray(change(self.artefact.weight(infos[name]).copy())).tobytes()
        weights = dict(self.manifest.weights)
        weights[name] = WeightSource(ARTEFACT, PLANTED, len(self.bytes), len(content))
        self.bytes += content
        self.manifest = replace(self.manifest, weights=weights)

    def save(self) -> Path:
        """Write what was changed, and a manifest that agrees."""
        files = dict(self.manifest.files)
        for name, graph in self.manifest.graphs.items():
            content = ir.to_proto(self.models[name]).SerializeToString(deterministic=True)
            files[graph.file] = write_file(self.folder / graph.file, content)
        if self.bytes:
            files[PLANTED] = write_file(self.folder / PLANTED, self.bytes)
        write_manifest(self.folder, replace(self.manifest, files=dict(sorted(files.items()))))
        assert json.loads((self.folder / "manifest.json").read_text("utf-8")), "no manifest"
        return self.folder


def _nodes(model: ir.Model, op: str) -> Iterator[ir.Node]:
    for scope in (model.graph, *model.functions.values()):
        yield from (n for n in scope if n.domain == DOMAIN and n.op_type == op)
