"""An artefact on TensorRT: weights and caches stay on the device, ids go in, the logits that were asked for come out.

One runner for both flavours. Owns the way of a step: cut to the profiles, inputs copied in, plan enqueued, logits
copied out. Refuses what `Runner` refuses, and a step for which no profile was built. The streams of a step stay on the
device until the next step.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np

from ds4export.artefact import Artefact
from ds4export.artefact.manifest import WEIGHT, TensorInfo
from ds4export.artefact.weights import NUMPY
from ds4export.errors import Ds4Error, RuntimeInputError
from ds4export.runtime.device import Array, Device
from ds4export.runtime.kv_cache import state_specs
from ds4export.runtime.runner import Limits, StepInputs, StepResult
from ds4export.runtime.step_cut import Piece, choose_profile, cut_step, profile_ranges
from ds4export.runtime.trt_binding import PlanShape, memory_of, plan_bindings
from ds4export.runtime.trt_graph import Bound, TrtGraph
from ds4export.runtime.trt_memory import DeviceMemory
from ds4export.runtime.trt_plan import LoadedPlan, PlanReader
from ds4export.runtime.trt_streams import (
    DeviceStreams,
    StreamStore,
    check_streams,
    copy_streams,
    read_streams,
)

MAIN, MTP = "main", "mtp"
STREAMS, STREAMS_IN, LOGITS = "streams", "streams_in", "logits"
Streams = Array | DeviceStreams


@dataclass(frozen=True)
class PlanSource:
    """A serialised plan and what its manifest says of it."""

    shape: PlanShape
    content: bytes


class TrtRunner:
    """A pool of slots over the plans of an engine; see `Runner`.

    Closes the device, and `resources`: what must live as long, a registered library for one.
    """

    def __init__(
        self,
        artefact: Artefact,
        plans: Mapping[str, PlanSource],
        reader: PlanReader,
        device: Device,
        *,
        num_slots: int,
        max_context: int,
        fill: float = 0.0,
        capture: bool = True,
        resources: ExitStack | None = None,
    ) -> None:
        self.artefact = artefact
        self.limits = Limits(artefact.manifest.config.vocab_size, num_slots, max_context)
        self._device, self._resources = device, resources or ExitStack()
        specs = state_specs(artefact.manifest, max_context)
        self._states = {n: (num_slots, spec.rows, spec.width) for n, spec in specs.items()}
        self._dtypes = {t.name: t.dtype for p in plans.values() for t in p.shape.tensors.inputs}
        layout = plan_bindings({n: p.shape for n, p in plans.items()}, self._states)
        loaded = {n: reader.read(n, p.content, p.shape.tensors) for n, p in plans.items()}
        most = max(plan.activation_bytes for plan in loaded.values())
        memory = memory_of(layout).with_activations(most)
        self._memory = DeviceMemory(device, layout, memory, artefact.path)
        try:
            self._memory.upload(artefact, _weights(plans))
            self._memory.fill_state(fill)
        except Ds4Error:
            self._memory.close()
            raise
        self._graphs = {
            name: self._new_graph(name, plan, plans[name].shape, capture=capture)
            for name, plan in loaded.items()
        }
        self._streams = self._new_streams()

    def _new_graph(
        self, name: str, plan: LoadedPlan, shape: PlanShape, *, capture: bool
    ) -> TrtGraph:
        # caches have symbolic dimensions too, but no step changes them
        fixed = {
            t.name: self._states[t.name] for t in shape.tensors.inputs if t.name in self._states
        }
        memory = self._memory
        bound = Bound(memory.addresses(name), fixed, memory.activations, memory.memory.activations)
        ranges = profile_ranges(shape.tensors, shape.profiles)
        return TrtGraph(plan, shape.tensors, ranges, bound, self._device, capture=capture)

    def _new_streams(self) -> StreamStore | None:
        info = self._graphs[MAIN].results.get(STREAMS)
        if info is None:
            return None
        return StreamStore(self._device, self._memory.address(STREAMS), info)

    @property
    def has_mtp(self) -> bool:
        return MTP in self._graphs

    def step(
        self, inputs: StepInputs, *, want_logits: bool = True, streams_in: Any = None
    ) -> StepResult:
        """Run the main graph; updates the pool in place.

        Args:
            inputs: checked against `limits`.
            want_logits: without them nothing is copied back.
            streams_in: [B, T, N, D] where the range of layers does not begin with the first: an array, or the
                `streams` of another runner on the same device.

        Raises:
            RuntimeInputError: streams missing, or not of this step.
            CapacityError: the engine was built for no step like this.
            ToolchainError: TensorRT fails; what the pool holds then is undefined.
        """
        if not want_logits:
            inputs = inputs.without_logits()
        graph = self._graph(MAIN)
        given = _checked(graph, STREAMS_IN, streams_in, inputs)
        pieces = self._pieces(MAIN, inputs)
        whole = None
        if self._streams is not None:
            whole = self._streams.begin(len(inputs.ids), inputs.ids.shape[1], len(pieces))
        logits = self._run(MAIN, inputs, pieces, given, want_logits=want_logits, whole=whole)
        return StepResult(logits, whole)

    def mtp_step(self, inputs: StepInputs, streams: Any) -> StepResult:
        """Run the MTP graph: `inputs.ids` are the ids one position later, `streams` those of the same step."""
        given = _checked(self._graph(MTP), STREAMS, streams, inputs)
        pieces = self._pieces(MTP, inputs)
        return StepResult(self._run(MTP, inputs, pieces, given, want_logits=True))

    def _pieces(self, name: str, inputs: StepInputs) -> list[Piece]:
        """The cut of a step; every piece has a profile before the first one runs."""
        profiles = self._graph(name).profiles
        pieces = cut_step(inputs, profiles)
        for piece in pieces:
            choose_profile(profiles, piece, f"graph `{name}`")
        return pieces

    def _run(
        self,
        name: str,
        inputs: StepInputs,
        pieces: list[Piece],
        given: Streams | None,
        *,
        want_logits: bool,
        whole: DeviceStreams | None = None,
    ) -> Any:
        """The pieces one after another; logits [B, R, V], or nothing."""
        graph = self._graph(name)
        logits = self._empty_logits(graph, inputs) if want_logits else None
        for piece in pieces:
            self._feed(name, graph, piece)
            if given is not None:
                self._feed_streams(name, graph, piece, given)
            profile = choose_profile(graph.profiles, piece, f"graph `{name}`")
            graph.run(profile, dict(zip("BTR", piece.sizes(), strict=True)))
            if whole is not None and self._streams is not None:
                self._streams.keep(piece, whole)
            if logits is not None:
                self._take_logits(name, piece, logits)
        self._device.synchronise()
        return logits

    def _feed(self, name: str, graph: TrtGraph, piece: Piece) -> None:
        """Copy a piece's integers to where the plan reads them."""
        names = {"next_ids": "ids"}
        for tensor in graph.steps.keys() - {STREAMS, STREAMS_IN}:
            array = getattr(piece.inputs, names.get(tensor, tensor))
            self._memory.write(self._memory.plan.bound[name][tensor], array)

    def _feed_streams(self, name: str, graph: TrtGraph, piece: Piece, given: Streams) -> None:
        tensor = STREAMS_IN if STREAMS_IN in graph.steps else STREAMS
        region = self._memory.plan.bound[name][tensor]
        if isinstance(given, DeviceStreams):
            copy_streams(self._device, given, piece, self._memory.address(region))
            return
        cut = np.ascontiguousarray(given[piece.rows, piece.tokens])
        self._memory.write(region, cut)
        self._device.synchronise()  # `cut` must live until its copy is done

    def _empty_logits(self, graph: TrtGraph, inputs: StepInputs) -> Any:
        """[B, R, V] of NaN, or nothing where the range of layers has no head."""
        if LOGITS not in graph.results:
            return None
        shape = (*inputs.logit_rows.shape, self.limits.vocab_size)
        return np.full(shape, np.nan, np.float32)

    def _take_logits(self, name: str, piece: Piece, logits: Array) -> None:
        if not len(piece.took):
            return
        batch, _, rows = piece.sizes()
        made = np.empty((batch, rows, self.limits.vocab_size), np.float32)
        self._memory.read(self._memory.plan.bound[name][LOGITS], made)
        logits[tuple(piece.puts.T)] = made[tuple(piece.took.T)]

    def _graph(self, name: str) -> TrtGraph:
        if name not in self._graphs:
            raise RuntimeInputError(
                "the model is closed" if not self._graphs else f"the engine has no {name} graph",
                where=self.artefact.path,
                found=", ".join(self._graphs) or "no open graph",
                expected=name,
            )
        return self._graphs[name]

    def read_streams(self, streams: DeviceStreams) -> Array:
        """A copy of a step's streams, bfloat16 as ml_dtypes.bfloat16.

        Raises:
            RuntimeInputError: a later step has overwritten them.
        """
        return read_streams(self._device, streams)

    def read_state(self, name: str) -> Array:
        """A copy of one cache, [S, rows, width]."""
        out = np.empty(self._states[name], NUMPY[self._dtypes[name]])
        return self._memory.read(name, out)

    def write_state(self, name: str, slot: int, rows: Array) -> None:
        """Overwrite one slot of a cache with [rows, width]."""
        array = np.ascontiguousarray(rows, NUMPY[self._dtypes[name]])
        assert array.shape == self._states[name][1:], f"`{name}` has another shape"
        self._memory.write(name, array, slot * array.nbytes)
        self._device.synchronise()

    @property
    def num_recorded(self) -> int:
        """Recorded decode steps of all graphs."""
        return sum(graph.num_recorded for graph in self._graphs.values())

    def close(self) -> None:
        """Let plans, memory, library and device go; a second call does nothing."""
        if not self._graphs:
            return
        for graph in self._graphs.values():
            graph.close()
        self._graphs.clear()
        if self._streams is not None:
            self._streams.close()
        self._memory.close()
        self._resources.close()
        self._device.close()


def _weights(plans: Mapping[str, PlanSource]) -> dict[str, TensorInfo]:
    inputs = (t for p in plans.values() for t in p.shape.tensors.inputs)
    return {t.name: t for t in inputs if t.kind == WEIGHT}


def _checked(graph: TrtGraph, name: str, given: Any, inputs: StepInputs) -> Streams | None:
    """Streams of the same step, or nothing where the graph takes none."""
    takes = name in graph.steps
    if takes != (given is not None):
        raise RuntimeInputError(
            "the streams of the layers before are missing"
            if takes
            else "streams are given to a range that begins with the first layer",
            where=f"`{name}`",
            found="nothing" if takes else "streams",
            expected="`streams` of the step before" if takes else "nothing",
        )
    if given is None:
        return None
    streams = given if isinstance(given, DeviceStreams) else np.ascontiguousarray(given)
    check_streams(graph.steps[name], streams, inputs)
    return streams
