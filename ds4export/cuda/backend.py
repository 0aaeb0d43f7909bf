"""The back end `torch-cuda` of `verify`: an artefact's nodes by the kernels, on the GPU that torch sees.

Weights are moved to the device once, state stays there and is updated in place. Owns the walk; refuses a float32
artefact, which no kernel computes, and one that needs an op without a kernel.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ds4export.cuda.build import Target, build_library, find_nvcc
from ds4export.cuda.library import KernelLibrary
from ds4export.cuda.register import Caller
from ds4export.errors import ParityError, RuntimeInputError, ToolchainError
from ds4export.model.weights import array_from_tensor, tensor_from_array
from ds4export.ops import ALL_OPS
from ds4export.parity.subject import Half, OpNode, Subject
from ds4export.parity.walked_end_to_end import WalkedEndToEnd
from ds4export.runtime.kv_cache import allocate_state
from ds4export.runtime.runner import StepResult

Array = NDArray[Any]
NAME = "torch-cuda"
# (op, attributes, names of inputs, names of outputs)
Node = tuple[str, tuple[Any, ...], Sequence[str], Sequence[str]]


def check_gpu() -> None:
    """Refuse a machine on which the back end cannot work.

    Raises:
        ToolchainError: torch sees no GPU, or there is no compiler.
    """
    if not torch.cuda.is_available():
        raise ToolchainError(
            f"the back end `{NAME}` needs an NVIDIA GPU",
            found=f"torch {torch.__version__} sees none",
            hint="use --backend onnxruntime",
        )
    find_nvcc()


def caller_for_gpu() -> Caller:
    """The kernels, built for the GPU that torch sees.

    Raises:
        ToolchainError: as `check_gpu`, or a compile fails.
    """
    check_gpu()
    major, minor = torch.cuda.get_device_capability()
    return Caller(KernelLibrary(build_library(Target(10 * major + minor)).library), in_place=True)


class KernelEndToEnd(WalkedEndToEnd):
    """State on the device."""

    def __init__(self, backend: KernelBackend, num_slots: int, max_context: int) -> None:
        super().__init__(backend.subject, num_slots, max_context)
        self._backend = backend
        rows = allocate_state(backend.subject.manifest, num_slots, max_context, fill=np.nan)
        self.state = {name: backend.moved(array) for name, array in rows.items()}

    def _run(self, graph: str, feeds: Mapping[str, Array | Tensor]) -> StepResult:
        values = {
            name: value if isinstance(value, Tensor) else self._backend.moved(value)
            for name, value in feeds.items()
        }
        made = self._backend.walk_graph(graph, values | self.state)
        self.state |= {n: made[f"{n}_out"] for n in self.state if f"{n}_out" in made}
        names = {o.name for o in self._backend.subject.manifest.graphs[graph].outputs}
        logits = made["logits"].cpu().numpy() if "logits" in names else None
        return StepResult(logits, made["streams"] if "streams" in names else None)

    def read_state(self, name: str) -> Array:
        return array_from_tensor(self.state[name].cpu().clone())

    def write_state(self, name: str, slot: int, rows: Array) -> None:
        self.state[name][slot] = self._backend.moved(rows)

    def streams(self, result: Any) -> Array:
        return array_from_tensor(result.cpu())

    def close(self) -> None:
        self.state.clear()


class KernelBackend:
    """See `Backend`. `caller` must update in place; by default its library is built for this GPU.

    Raises:
        RuntimeInputError: a float32 artefact.
        ToolchainError: an op of the artefact has no kernel; see `caller_for_gpu`.
    """

    name = NAME

    def __init__(
        self, subject: Subject, caller: Caller | None = None, device: str = "cuda"
    ) -> None:
        if not subject.manifest.official:
            raise RuntimeInputError(
                "the kernels compute official numerics only",
                where=subject.artefact.path,
                found=subject.manifest.numerics,
                expected="official",
                hint="export with --numerics official",
            )
        self.subject, self.device = subject, device
        self.caller = caller or caller_for_gpu()
        assert self.caller.in_place, "state is updated in place"
        lacking = sorted(subject.ops - set(self.caller.library.ops))
        if lacking:
            raise ToolchainError(
                "ops of the artefact have no kernel",
                where="plugins/registry.cpp",
                found=", ".join(lacking),
            )
        self._weights: dict[tuple[str, str], Tensor] = {}

    def open(self, *, num_slots: int, max_context: int) -> KernelEndToEnd:
        return KernelEndToEnd(self, num_slots, max_context)

    def run_op(self, node: OpNode, inputs: Sequence[Array]) -> list[Array]:
        made = self._call(node.op, [self.moved(x) for x in inputs], node.attributes)
        return [array_from_tensor(t.cpu()) for t in made]

    def run_half(self, half: Half, inputs: Sequence[Array]) -> list[Array]:
        model = self.subject.graphs[half.graph].model
        call = next(n for n in model.graph if n.name == half.path)
        function = model.functions[call.op_identifier()]
        nodes = [
            (
                node.op_type,
                tuple(node.attributes[name].value for name in ALL_OPS[node.op_type].attributes()),
                [v.name or "" for v in node.inputs if v is not None],
                [v.name or "" for v in node.outputs],
            )
            for node in function
        ]
        names = [v.name or "" for v in function.inputs]
        values = {n: self.moved(x) for n, x in zip(names, inputs, strict=True)}
        self._walk(nodes, values)
        return [array_from_tensor(values[v.name or ""].cpu()) for v in function.outputs]

    def trace(
        self, graph: str, feeds: Mapping[str, Array], taps: Sequence[str]
    ) -> dict[str, Array]:
        made = self.walk_graph(graph, {name: self.moved(x) for name, x in feeds.items()})
        return {name: array_from_tensor(made[name].cpu()) for name in taps}

    def moved(self, array: Array) -> Tensor:
        """A copy on the device, aligned as kernels want it."""
        contiguous = np.ascontiguousarray(array)
        writable = contiguous if contiguous.flags.writeable else contiguous.copy()
        return tensor_from_array(writable).to(self.device, copy=True)

    def walk_graph(self, graph: str, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """Every value of a graph by name, from those that are fed; weights are fetched."""
        parts = self.subject.graphs[graph]
        for name in {name for node in parts.nodes for name in node.inputs}:
            fixed = self._fixed(graph, name)
            if fixed is not None:
                values[name] = fixed
        self._walk([(n.op, n.attributes, n.inputs, n.outputs) for n in parts.nodes], values)
        return values

    def _fixed(self, graph: str, name: str) -> Tensor | None:
        key = ("" if self.subject.is_weight(name) else graph, name)
        if key not in self._weights:
            array = self.subject.fixed(graph, name)
            if array is None:
                return None
            self._weights[key] = self.moved(array)
        return self._weights[key]

    def _walk(self, nodes: Iterable[Node], values: dict[str, Tensor]) -> None:
        for op, attributes, inputs, outputs in nodes:
            made = self._call(op, [values[name] for name in inputs], attributes)
            values |= zip(outputs, made, strict=True)

    def _call(self, op: str, inputs: Sequence[Tensor], attributes: Sequence[Any]) -> list[Tensor]:
        try:
            return self.caller(ALL_OPS[op], inputs, attributes)
        except RuntimeInputError as error:
            raise ParityError(
                f"the kernel of `{op}` does not run", where=NAME, found=error.found or error.what
            ) from None
