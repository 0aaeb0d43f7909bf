"""The back end `torch`: the artefact's graph walked with the reference ops and the artefact's weights.

A check of the checker: with a sound artefact every difference is exactly zero. Op bodies are not looked at.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ds4export.model.weights import array_from_tensor, tensor_from_array
from ds4export.ops import ALL_OPS
from ds4export.parity.reference import call_reference
from ds4export.parity.subject import Half, OpNode, Subject
from ds4export.parity.walked_end_to_end import WalkedEndToEnd
from ds4export.runtime.kv_cache import allocate_state
from ds4export.runtime.runner import StepResult

Array = NDArray[Any]


class TorchEndToEnd(WalkedEndToEnd):
    """State in arrays, replaced by each step."""

    def __init__(self, backend: TorchBackend, num_slots: int, max_context: int) -> None:
        super().__init__(backend.subject, num_slots, max_context)
        self.backend, manifest = backend, backend.subject.manifest
        self.state = allocate_state(manifest, num_slots, max_context, fill=np.nan)

    def _run(self, graph: str, feeds: Mapping[str, Array]) -> StepResult:
        names = [o.name for o in self.backend.subject.manifest.graphs[graph].outputs]
        out = self.backend.trace(graph, {**feeds, **self.state}, names)
        self.state |= {n.removesuffix("_out"): v for n, v in out.items() if n.startswith("state.")}
        return StepResult(out.get("logits"), out.get("streams"))

    def read_state(self, name: str) -> Array:
        return self.state[name].copy()

    def write_state(self, name: str, slot: int, rows: Array) -> None:
        self.state[name] = self.state[name].copy()
        self.state[name][slot] = rows

    def streams(self, result: Any) -> Array:
        return np.asarray(result)

    def close(self) -> None:
        self.state.clear()


class TorchBackend:
    """See `Backend`."""

    name = "torch"

    def __init__(self, subject: Subject) -> None:
        self.subject = subject

    def open(self, *, num_slots: int, max_context: int) -> TorchEndToEnd:
        return TorchEndToEnd(self, num_slots, max_context)

    def run_op(self, node: OpNode, inputs: Sequence[Array]) -> list[Array]:
        return _call(node.op, node.attributes, list(inputs))

    def run_half(self, half: Half, inputs: Sequence[Array]) -> list[Array]:
        model = self.subject.graphs[half.graph].model
        call = next(n for n in model.graph if n.name == half.path)
        function = model.functions[call.op_identifier()]
        values = dict(zip(function.inputs, inputs, strict=True))
        for node in function:
            op = ALL_OPS[node.op_type]
            attributes = tuple(node.attributes[name].value for name in op.attributes())
            made = _call(op.name, attributes, [values[v] for v in node.inputs if v is not None])
            values |= zip(node.outputs, made, strict=True)
        return [values[v] for v in function.outputs]

    def trace(
        self, graph: str, feeds: Mapping[str, Array], taps: Sequence[str]
    ) -> dict[str, Array]:
        values: dict[str, Array] = dict(feeds)
        for node in self.subject.graphs[graph].nodes:
            inputs = [self._value(graph, name, values) for name in node.inputs]
            made = _call(node.op, node.attributes, inputs)
            values |= zip(node.outputs, made, strict=True)
        return {name: values[name] for name in taps}

    def _value(self, graph: str, name: str, values: Mapping[str, Array]) -> Array:
        fixed = values[name] if name in values else self.subject.fixed(graph, name)
        assert fixed is not None, f"`{name}` is fed by nothing"
        return fixed


def _call(name: str, attributes: tuple[Any, ...], inputs: list[Array]) -> list[Array]:
    tensors = tuple(tensor_from_array(_writable(a)) for a in inputs)
    call = call_reference(ALL_OPS[name], tensors, attributes)
    return [array_from_tensor(t) for t in call.outputs]


def _writable(array: Array) -> Array:
    """torch warns about arrays that cannot be written, though no op writes into its inputs."""
    return array if array.flags.writeable else array.copy()
