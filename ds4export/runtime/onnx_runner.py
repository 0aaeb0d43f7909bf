"""ONNX Runtime: weights bound once, caches bound to themselves.

On the CPU weights are views of the memory map; on a GPU they and the caches lie on the device, ids go in and logits
come out. Refuses a file that is not what the manifest says.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from ds4export.artefact import Artefact, GraphInfo, TensorInfo
from ds4export.artefact.manifest import STATE, WEIGHT
from ds4export.errors import ArtefactError, Ds4Error, RuntimeInputError
from ds4export.runtime.kv_cache import allocate_state
from ds4export.runtime.ort_placement import HOST, Placement, provider_list
from ds4export.runtime.ort_values import ort_value
from ds4export.runtime.runner import Limits, StepInputs, StepResult

# What ONNX Runtime would print, the errors raised here say; below this it also warns about its own rewrites.
_LOG_FATAL = 4


class OnnxRunner:
    """A pool of slots over the sessions of an artefact.

    The output of every state tensor is bound to the buffer of its input, so that an append costs microseconds at any
    capacity (design 11). `state` holds the arrays of a pool on the host; a pool on a device is read with `read_state`.
    The placement is closed with the runner.
    """

    def __init__(
        self,
        artefact: Artefact,
        *,
        num_slots: int,
        max_context: int,
        threads: int = 0,
        fill: float = 0.0,
        spare: int = 0,
        placement: Placement = HOST,
    ) -> None:
        manifest = artefact.manifest
        self.artefact, self.placement = artefact, placement
        self.limits = Limits(manifest.config.vocab_size, num_slots, max_context)
        try:
            self.state = allocate_state(manifest, num_slots, max_context, fill=fill, spare=spare)
        except Ds4Error as error:
            raise error.at(artefact.path) from None
        self._values = self._placed()
        self._graphs = {
            name: _BoundGraph(self, name, graph, threads) for name, graph in manifest.graphs.items()
        }
        if placement.device is not None:
            self.state.clear()  # they were the start of the pool, which lies on the device

    def _placed(self) -> dict[str, ort.OrtValue]:
        """Every weight and cache once; graphs that share one share its value."""
        graphs = self.artefact.manifest.graphs.values()
        weights = {i.name: i for g in graphs for i in g.inputs if i.kind == WEIGHT}
        arrays = {name: self.artefact.weight(info) for name, info in weights.items()}
        self.placement.check_room(arrays.values(), self.state.values(), self.artefact.path)
        return {n: self.placement.value(a) for n, a in (arrays | self.state).items()}

    @property
    def has_mtp(self) -> bool:
        return "mtp" in self._graphs

    def value(self, name: str) -> ort.OrtValue:
        """A weight or cache where the graphs read it."""
        return self._values[name]

    def read_state(self, name: str) -> NDArray[Any]:
        """A copy of one cache, [S, rows, width]."""
        return self.placement.read(self._values[name]).copy()

    def write_state(self, name: str, slot: int, rows: NDArray[Any]) -> None:
        """Overwrite one slot of a cache with [rows, width]."""
        if self.placement.device is None:
            self.state[name][slot] = rows
            return
        self.placement.write(self._values[name], rows, slot * rows.nbytes)

    def read_streams(self, streams: ort.OrtValue) -> NDArray[Any]:
        """A copy of a step's streams, bfloat16 as ml_dtypes.bfloat16."""
        return self.placement.read(streams)

    def step(
        self, inputs: StepInputs, *, want_logits: bool = True, streams_in: Any = None
    ) -> StepResult:
        """Run the main graph; updates the pool in place.

        Args:
            inputs: checked against `limits`.
            want_logits: without them the head still runs, for one row of each sequence: ONNX Runtime executes every
                node of a graph, whatever is asked of it.
            streams_in: [B, T, N, D] where the range of layers does not begin with the first; `streams` of the step
                of the layers before.

        Raises:
            RuntimeInputError: streams missing, or not of this step.
            ArtefactError: ONNX Runtime fails in the graph; what the pool holds then is undefined.
        """
        if not want_logits:
            inputs = inputs.without_logits()
        feeds = _feeds(inputs, "ids")
        graph = self._graph("main")
        if streams_in is not None or "streams_in" in graph.steps:
            feeds["streams_in"] = graph.checked_streams("streams_in", streams_in, inputs)
        return graph.run(feeds, want_logits=want_logits)

    def mtp_step(self, inputs: StepInputs, streams: Any) -> StepResult:
        """Run the MTP graph: `inputs.ids` are the ids one position later, `streams` those of the same step.

        Raises:
            RuntimeInputError: the artefact has no MTP graph, or the streams are not of this step.
        """
        graph = self._graph("mtp")
        feeds = _feeds(inputs, "next_ids")
        feeds["streams"] = graph.checked_streams("streams", streams, inputs)
        return graph.run(feeds, want_logits=True)

    def _graph(self, name: str) -> _BoundGraph:
        if name not in self._graphs:
            raise RuntimeInputError(
                "the model is closed" if not self._graphs else f"the artefact has no {name} graph",
                where=self.artefact.path,
                found=", ".join(self._graphs) or "no open graph",
                expected=name,
            )
        return self._graphs[name]

    def close(self) -> None:
        self._graphs.clear()
        self._values.clear()
        self.state.clear()
        self.placement.close()


def _feeds(inputs: StepInputs, ids: str) -> dict[str, Any]:
    return {
        ids: inputs.ids,
        "slots": inputs.slots,
        "positions": inputs.positions,
        "num_new": inputs.num_new,
        "logit_rows": inputs.logit_rows,
    }


class _BoundGraph:
    """One session and its I/O bindings, kept between steps; only the step's own inputs change."""

    def __init__(self, runner: OnnxRunner, name: str, graph: GraphInfo, threads: int) -> None:
        self.path = runner.artefact.graph_path(name)
        self.placement = runner.placement
        self.session = open_session(runner.artefact, name, threads, runner.placement)
        _check_session(self.session, graph, self.path)
        self.steps = {i.name: i for i in graph.inputs if i.kind not in (WEIGHT, STATE)}
        self.results = [o.name for o in graph.outputs if o.kind != STATE]
        self._states = [i.name for i in graph.inputs if i.kind == STATE]
        self._bindings: dict[tuple[str, ...], ort.IOBinding] = {}
        placed = (i.name for i in graph.inputs if i.kind in (WEIGHT, STATE))
        self._values = {name: runner.value(name) for name in placed}

    def run(self, feeds: Mapping[str, Any], *, want_logits: bool) -> StepResult:
        wanted = tuple(n for n in self.results if want_logits or n != "logits")
        values = {
            n: v if isinstance(v, ort.OrtValue) else ort_value(v)
            for n, v in feeds.items()
            if n in self.steps
        }
        binding = self._binding(wanted)
        for name, value in values.items():
            binding.bind_ortvalue_input(name, value)
        for name in wanted:
            # logits are for the caller, streams for the next graph
            binding.bind_output(name, self._device_of(name))
        try:
            self.placement.run(self.session, binding)
        except Exception as cause:  # onnxruntime raises classes of its own, without a common base
            raise _refused("ONNX Runtime cannot run the graph", self.path, cause) from None
        outputs = dict(zip(wanted, binding.get_outputs()[len(self._states) :], strict=True))
        logits = outputs.get("logits")
        return StepResult(None if logits is None else logits.numpy(), outputs.get("streams"))

    def _device_of(self, result: str) -> str:
        return "cpu" if result == "logits" else self.placement.device_type

    def _binding(self, wanted: tuple[str, ...]) -> ort.IOBinding:
        """One binding per set of results: outputs come in the order in which they were first bound, states first."""
        if wanted not in self._bindings:
            binding = self._bindings[wanted] = self.session.io_binding()
            for name, value in self._values.items():
                binding.bind_ortvalue_input(name, value)
            for name in self._states:
                binding.bind_ortvalue_output(f"{name}_out", self._values[name])
        return self._bindings[wanted]

    def checked_streams(self, name: str, given: Any, inputs: StepInputs) -> ort.OrtValue:
        """Streams as an OrtValue; they must be those of the same step."""
        if name not in self.steps or given is None:
            raise RuntimeInputError(
                "streams are given to a range that begins with the first layer"
                if given is not None
                else "the streams of the layers before are missing",
                where=f"`{name}`",
                found="nothing" if given is None else "streams",
                expected="nothing" if given is not None else "`streams` of the step before",
            )
        value = given if isinstance(given, ort.OrtValue) else ort_value(np.ascontiguousarray(given))
        info = self.steps[name]
        expected = [*inputs.ids.shape, *info.dims[2:]]
        if list(value.shape()) != expected or value.data_type() != _ort_type(info):
            raise RuntimeInputError(
                "the streams are not of this step",
                where=f"`{name}`",
                found=f"{value.data_type()} {list(value.shape())}",
                expected=f"{_ort_type(info)} {expected}",
            )
        return value


def _ort_type(info: TensorInfo) -> str:
    return f"tensor({info.dtype.lower()})"


def open_session(
    artefact: Artefact, graph: str, threads: int, placement: Placement = HOST
) -> ort.InferenceSession:
    """A session over a graph of the artefact.

    Raises:
        ArtefactError: ONNX Runtime refuses the file.
        ToolchainError: it cannot start a provider of the placement.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = _LOG_FATAL
    path = artefact.graph_path(graph)
    try:
        # A fallback would print to stdout and try the same provider again.
        session = ort.InferenceSession(
            str(path), options, providers=provider_list(placement.providers), enable_fallback=0
        )
    except Exception as cause:  # as in `run`
        raise _refused("ONNX Runtime cannot load the graph", path, cause) from None
    placement.check(session)
    return session


def _refused(what: str, path: Path, cause: Exception) -> ArtefactError:
    return ArtefactError(
        what,
        where=path,
        found=(str(cause).splitlines() or [type(cause).__name__])[0][:300],
        expected=f"a model for onnxruntime {ort.__version__}",
        hint="export again, or run `ds4export doctor`",
    )


def _check_session(session: ort.InferenceSession, graph: GraphInfo, path: Path) -> None:
    """Inputs and outputs of the file are those of the manifest: what is bound below is what the graph takes."""
    loaded = [*session.get_inputs(), *session.get_overridable_initializers()]
    inputs = {a.name: f"{a.type} {a.shape}" for a in loaded}
    _check_equal(inputs, {i.name: f"{_ort_type(i)} {list(i.dims)}" for i in graph.inputs}, path)
    # Shapes of outputs are what ONNX Runtime infers, so only the types are compared.
    outputs = {a.name: a.type for a in session.get_outputs()}
    _check_equal(outputs, {o.name: _ort_type(o) for o in graph.outputs}, path)


def _check_equal(found: Mapping[str, str], expected: Mapping[str, str], path: Path) -> None:
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise ArtefactError(
                f"`{name}` of the graph is not what the manifest says",
                where=path,
                found=found.get(name, "none"),
                expected=expected.get(name, "none"),
                hint="export again",
            )
