"""The back ends `tensorrt-rtx` and `tensorrt`: engines built here for this machine's GPU, and run on it.

The whole artefact becomes an engine with the scenario's sizes; an op, or a half layer, one of its own for each shape
that occurs. Weights are bound, state is written in place, as in the runtime. Refuses a float32 artefact, a library
without kernels or without an op, and a machine that lacks TensorRT, a driver or a GPU.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import RemoveUnusedNodesPass

from ds4export.artefact.manifest import RESULT, STATE, STEP, GraphInfo, TensorInfo
from ds4export.engine.build import refuse_float32
from ds4export.engine.cache_layout import NATIVE, with_cache
from ds4export.engine.plan import PlanBuilder, lower, read_graph
from ds4export.engine.plugins import DOES_NOTHING, check_ops, find_library, identify
from ds4export.engine.profile import DEFAULT_CHUNK, Shapes, Sizes, StepShape, profiles_of
from ds4export.engine.tensorrt import RTX, RTX_TARGETS, Flavour, open_flavour
from ds4export.errors import Ds4Error, ParityError, ToolchainError
from ds4export.ops import ALL_OPS
from ds4export.parity.cache_rows import CacheRows, kinds_of_outputs
from ds4export.parity.cut import cut_node, with_taps
from ds4export.parity.packed_rows import input_kinds
from ds4export.parity.runner_end_to_end import RunnerEndToEnd
from ds4export.parity.subject import Half, OpNode, Subject
from ds4export.report import Reporter
from ds4export.runtime.cuda_device import open_cuda_device
from ds4export.runtime.device import Device
from ds4export.runtime.trt_binding import PlanShape
from ds4export.runtime.trt_library import shared_library
from ds4export.runtime.trt_once import run_once
from ds4export.runtime.trt_plan import PlanReader
from ds4export.runtime.trt_runner import PlanSource, TrtRunner
from ds4export.state import cache_kind

Array = NDArray[Any]
LOGIT_ROWS = 4  # as many as the scenario asks for at once
KEPT_PLANS = 256


@dataclass(frozen=True)
class Machine:
    """What a run needs of this machine."""

    flavour: Flavour
    library: Path
    open_device: Callable[[], Device]


def open_machine(name: str) -> Machine:
    """TensorRT, the plugin library of `make plugins`, and the GPU, each looked for.

    Raises:
        ToolchainError: one of them is missing; says how to get it.
    """
    flavour = open_flavour(name)
    library = find_library()
    open_cuda_device().close()
    return Machine(flavour, library, open_cuda_device)


def check_machine(name: str) -> None:
    """Refuse a machine on which the back end cannot work; raises as `open_machine`."""
    open_machine(name)


class TensorRtBackend:
    """See `Backend`. The plugin library stays registered as long as this lives.

    With packed caches the plugins get and give INT8 rows; whoever calls sees bf16 rows.
    """

    def __init__(self, subject: Subject, machine: Machine, cache: str = NATIVE) -> None:
        refuse_float32(subject.manifest.numerics, subject.artefact.path)
        self.subject, self.name = subject, machine.flavour.name
        if cache != NATIVE:
            self.name += f", {cache} caches"
        self.tables = with_cache(subject.manifest, cache)
        self.rows = CacheRows(subject.manifest.config, cache)
        self._machine = machine
        self._stack = ExitStack()
        weakref.finalize(self, self._stack.close)
        self._device = machine.open_device()
        self._stack.callback(self._device.close)
        targets = _targets(machine.flavour, self._device.facts.architecture)
        self._builder = PlanBuilder(machine.flavour, targets, Reporter())  # it has the logger
        self._reader = PlanReader(machine.flavour)
        library = identify(machine.library)
        _check_kernels(library.kind, machine.library)
        ops = self._stack.enter_context(
            shared_library(machine.library, library, machine.flavour.module)
        )
        check_ops(ops, subject.manifest.ops, machine.library)
        self._plans: dict[tuple[Any, ...], _Part] = {}

    def open(self, *, num_slots: int, max_context: int) -> TensorRtEndToEnd:
        batch, chunk = (1, num_slots, num_slots), min(DEFAULT_CHUNK, max_context)
        rows = (1, 1, LOGIT_ROWS)
        steps = {
            "decode": StepShape(batch, (1, 1, 1), rows),
            "prefill": StepShape(batch, (1, chunk, chunk), rows),
        }
        sizes = Sizes(max_context, num_slots, steps)
        plans = {name: self._whole(name, sizes) for name in self.tables.graphs}
        with ExitStack() as stack:
            device = self._machine.open_device()
            stack.callback(device.close)
            runner = TrtRunner(
                replace(self.subject.artefact, manifest=self.tables),
                plans,
                self._reader,
                device,
                num_slots=num_slots,
                max_context=max_context,
                fill=np.nan,
            )
            stack.pop_all()
        return TensorRtEndToEnd(runner, self.rows)

    def _whole(self, name: str, sizes: Sizes) -> PlanSource:
        info = self.tables.graphs[name]
        profiles = profiles_of(info, self.tables.config, sizes)
        graph_path = self.subject.artefact.graph_path(name)
        model = lower(read_graph(graph_path), packed=self.rows.are_packed)
        return PlanSource(
            PlanShape(info, profiles), self._builder.build(name, model, profiles).content
        )

    def run_op(self, node: OpNode, inputs: Sequence[Array]) -> list[Array]:
        op = ALL_OPS[node.op]
        names, outputs = list(op.inputs), list(op.outputs)
        shared = {
            outputs.index(out): names.index(source) for out, source in (op.aliases or {}).items()
        }
        key = (node.graph, "op", node.op, repr(node.attributes))
        cut = _Cut(key, node.graph, node.path, node.inputs, input_kinds(node), shared, flat=True)
        return self._run(cut, inputs)

    def run_half(self, half: Half, inputs: Sequence[Array]) -> list[Array]:
        position = {name: i for i, name in enumerate(half.inputs)}
        shared = {
            o: position[name.removesuffix("_out")]
            for o, name in enumerate(half.outputs)
            if name.startswith("state.") and name.removesuffix("_out") in position
        }
        key, kinds = (half.graph, "half", half.function), [cache_kind(n) for n in half.inputs]
        cut = _Cut(key, half.graph, half.path, half.inputs, kinds, shared, flat=False)
        return self._run(cut, inputs)

    def trace(
        self, graph: str, feeds: Mapping[str, Array], taps: Sequence[str]
    ) -> dict[str, Array]:
        # a cache that goes in has to come out, whoever looks at it
        parts = self.subject.graphs[graph]
        states = [o.name for o in self.tables.graphs[graph].outputs if o.kind == STATE]
        outputs = list(dict.fromkeys((*taps, *states)))
        model = _needed(_lowered(with_taps(parts, outputs), packed=self.rows.are_packed))
        names, fed = [str(v.name) for v in model.graph.inputs], self.rows.pack_feeds(feeds)
        arrays = {n: fed[n] if n in fed else self.subject.fixed(graph, n) for n in names}
        known = {n: np.ascontiguousarray(a) for n, a in arrays.items() if a is not None}
        assert len(known) == len(names), f"fed by nothing: {set(names) - set(known)}"
        shared = {name: name.removesuffix("_out") for name in states}
        with _as_parity_error(graph):
            made = self._execute(self._build(graph, model, known), known, shared)
        kinds = kinds_of_outputs(parts.nodes)
        return {name: self.rows.unpack(made[name], kinds[name]) for name in taps}

    def _run(self, cut: _Cut, inputs: Sequence[Array]) -> list[Array]:
        given = [
            np.ascontiguousarray(self.rows.pack(array, kind, name))
            for array, kind, name in zip(inputs, cut.kinds, cut.names, strict=True)
        ]
        arrays = {f"input_{i}": a for i, a in enumerate(given)}
        shared = {f"output_{o}": f"input_{i}" for o, i in cut.shared.items()}
        key = (*cut.key, *(a.shape for a in given))
        with _as_parity_error(cut.path):
            if key not in self._plans:
                while len(self._plans) >= KEPT_PLANS:
                    del self._plans[next(iter(self._plans))]
                self._plans[key] = self._build(cut.path, self._model(cut), arrays)
            made = self._execute(self._plans[key], arrays, shared)
        kinds = {o: cut.kinds[i] for o, i in cut.shared.items()}
        return [self.rows.unpack(made[f"output_{o}"], kinds.get(o)) for o in range(len(made))]

    def _model(self, cut: _Cut) -> ir.Model:
        """The part, lowered; with packed caches its plugins are given INT8 rows."""
        parts = self.subject.graphs[cut.graph]
        model = _lowered(cut_node(parts, cut.path, flat=cut.flat))
        if not self.rows.are_packed:
            return model
        caches = [i for i, kind in enumerate(cut.kinds) if kind]
        names = {f"input_{i}" for i in caches}
        names |= {f"output_{o}" for o, i in cut.shared.items() if i in caches}
        for value in (*model.graph.inputs, *model.graph.outputs):
            if value.name in names:
                value.type = ir.TensorType(ir.DataType.INT8)  # dimensions are free in a cut
        return model

    def _build(self, name: str, model: ir.Model, arrays: Mapping[str, Array]) -> _Part:
        """The plan for exactly these shapes, and what it takes and gives."""
        inputs = [v for v in model.graph.inputs if v.name not in model.graph.initializers]
        tensors = GraphInfo(
            name,
            tuple(_info(v, STEP) for v in inputs),
            tuple(_info(v, RESULT) for v in model.graph.outputs),
        )
        shapes: dict[str, Shapes] = {
            t.name: (arrays[t.name].shape,) * 3
            for t in tensors.inputs
            if any(isinstance(d, str) for d in t.dims)
        }
        return _Part(tensors, self._builder.build(name, model, {"only": shapes}).content)

    def _execute(
        self, part: _Part, arrays: Mapping[str, Array], shared: Mapping[str, str]
    ) -> dict[str, Array]:
        plan = self._reader.read(part.tensors.file, part.content, part.tensors)
        return run_once(plan, part.tensors, self._device, arrays, shared)


class TensorRtEndToEnd(RunnerEndToEnd):
    """A run whose caches are rows of one layout, and seen as bf16 rows."""

    def __init__(self, runner: TrtRunner, rows: CacheRows) -> None:
        super().__init__(runner)
        self._rows = rows

    def read_state(self, name: str) -> Array:
        return self._rows.unpack(super().read_state(name), cache_kind(name))

    def write_state(self, name: str, slot: int, rows: Array) -> None:
        super().write_state(name, slot, self._rows.pack(rows, cache_kind(name), name))


@dataclass(frozen=True)
class _Cut:
    """A part that is run by itself; parts of one `key` share their plans, for the same shapes.

    `names` and `kinds` are those of its inputs, KV, KEY or None; `shared`: output -> the input in whose memory it lies.
    """

    key: tuple[str, ...]
    graph: str
    path: str
    names: Sequence[str]
    kinds: Sequence[str | None]
    shared: Mapping[int, int]
    flat: bool


@dataclass(frozen=True)
class _Part:
    """A plan of a part of the artefact, for one set of shapes."""

    tensors: GraphInfo
    content: bytes


def tensorrt_backend(subject: Subject, name: str, cache: str = NATIVE) -> TensorRtBackend:
    """The back end `tensorrt-rtx` or `tensorrt`; raises as `open_machine`."""
    return TensorRtBackend(subject, open_machine(name), cache)


def _targets(flavour: Flavour, architecture: str) -> tuple[str, ...]:
    if flavour.name == RTX and architecture not in RTX_TARGETS:
        raise ToolchainError(
            "TensorRT for RTX does not run on this GPU",
            found=architecture,
            expected=", ".join(RTX_TARGETS),
            hint="use --backend tensorrt or --backend onnxruntime-cuda here",
        )
    return (architecture,)


def _check_kernels(kind: str, library: Path) -> None:
    if kind == DOES_NOTHING:
        raise ToolchainError(
            "the plugins of this library do nothing",
            where=library,
            found=kind,
            expected="a library with kernels",
            hint="build it with `make plugins`",
        )


def _lowered(model: ir.Model, *, packed: bool = False) -> ir.Model:
    """Lowering works in place; functions of a cut are shared with the artefact's own model."""
    return lower(ir.from_proto(ir.to_proto(model)), packed=packed)


def _needed(model: ir.Model) -> ir.Model:
    """Without nodes and inputs that no output hangs on: TensorRT would leave them out without a word."""
    RemoveUnusedNodesPass()(model)
    for value in [v for v in model.graph.inputs if not v.uses()]:
        model.graph.inputs.remove(value)
    return model


def _info(value: ir.Value, kind: str) -> TensorInfo:
    """Dimensions without a size get a name: what they are comes with the arrays."""
    assert value.name, "inputs and outputs of a cut have names"
    assert value.dtype is not None, value.name
    dims = [d if isinstance(d, int) else "any" for d in value.shape or ()]
    return TensorInfo(value.name, kind, value.dtype.name, tuple(dims))


@contextmanager
def _as_parity_error(where: str) -> Iterator[None]:
    """A part that cannot be built or run is a finding, not the end of a verification."""
    try:
        yield
    except Ds4Error as cause:
        raise ParityError(cause.what, where=where, found=cause.found) from None
