"""One plan ready to run: contexts with everything bound, and recorded graphs of the decode step.

Owns the order of calls for a step on the device. A decode step has the same shapes every time: after it has run once
for a batch size, the next one is recorded, and from then on launched as one piece. Refuses nothing that the plan does
not refuse; where recording is refused, steps go on one by one and a sentence says so.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ds4export.artefact.manifest import STATE, WEIGHT, GraphInfo
from ds4export.errors import Ds4Error
from ds4export.runtime.device import Device
from ds4export.runtime.step_cut import ProfileRange
from ds4export.runtime.trt_plan import LoadedPlan, PlanContext


@dataclass(frozen=True)
class Bound:
    """What a context is told once: addresses of all tensors, and the shapes of all that no step changes."""

    addresses: Mapping[str, int]
    fixed_shapes: Mapping[str, Sequence[int]]
    activations: int
    activation_bytes: int


class TrtGraph:
    """The contexts of a plan, one for each profile, made when the first step needs them."""

    def __init__(
        self,
        plan: LoadedPlan,
        tensors: GraphInfo,
        profiles: Sequence[ProfileRange],
        bound: Bound,
        device: Device,
        *,
        capture: bool = True,
    ) -> None:
        self.tensors, self.profiles = tensors, profiles
        self.steps = {t.name: t for t in tensors.inputs if t.kind not in (WEIGHT, STATE)}
        self.results = {t.name: t for t in tensors.outputs if t.kind != STATE}
        self._plan, self._bound, self._device = plan, bound, device
        self._contexts: dict[int, PlanContext] = {}
        self._capture = capture
        self._seen: set[tuple[int, tuple[int, ...]]] = set()
        self._graphs: dict[tuple[int, tuple[int, ...]], int] = {}

    @property
    def num_recorded(self) -> int:
        """How many decode steps, by batch size, are recorded."""
        return len(self._graphs)

    def run(self, profile: ProfileRange, sizes: Mapping[str, int]) -> None:
        """Enqueue one step whose inputs lie in place; `sizes` of B, T and R.

        Raises:
            ToolchainError: TensorRT refuses.
        """
        key = (profile.index, tuple(sizes.values()))
        if key in self._graphs:
            self._device.launch(self._graphs[key])
            return
        context = self._context(profile.index)
        context.shape({t.name: _shape(t.dims, sizes) for t in self.steps.values()})
        if key in self._seen and self._is_decode(profile) and self._record(key, context):
            return
        context.enqueue(self._device.stream)
        self._seen.add(key)

    def _is_decode(self, profile: ProfileRange) -> bool:
        return self._capture and profile.tokens == (1, 1)

    def _record(self, key: tuple[int, tuple[int, ...]], context: PlanContext) -> bool:
        """Record the step and launch it; a step that ran before at these shapes has nothing left to set up."""
        try:
            self._graphs[key] = self._recorded(context)
        except Ds4Error as refusal:
            self._capture = False
            warnings.warn(
                f"decode steps of graph `{self._plan.graph}` run without a CUDA graph: {refusal.found}",
                RuntimeWarning,
                stacklevel=2,
            )
            return False
        self._device.launch(self._graphs[key])
        return True

    def _recorded(self, context: PlanContext) -> int:
        stream = self._device.stream
        if not context.can_capture(stream):
            raise self._plan.refusal("says that its work cannot be recorded", "a stream to record")
        self._device.synchronise()  # what was told about shapes must have arrived
        self._device.begin_capture()
        try:
            context.enqueue(stream)
        except Ds4Error:
            self._abandon_capture()
            raise
        return self._device.end_capture()

    def _abandon_capture(self) -> None:
        """A stream records until it is told to end, whatever has failed in between."""
        try:
            self._device.release_graph(self._device.end_capture())
        except Ds4Error:
            return  # an invalid capture ends with an error: the first refusal is the one to tell

    def _context(self, profile: int) -> PlanContext:
        if profile not in self._contexts:
            bound = self._bound
            made = self._plan.context(
                profile, bound.activations, bound.activation_bytes, self._device.stream
            )
            made.bind(bound.addresses)
            made.shape(bound.fixed_shapes)
            self._device.synchronise()
            self._contexts[profile] = made
        return self._contexts[profile]

    def close(self) -> None:
        """Let graphs and contexts go, in this order: a graph holds on to what a context knows."""
        for graph in self._graphs.values():
            self._device.release_graph(graph)
        self._graphs.clear()
        self._contexts.clear()


def _shape(dims: Sequence[int | str], sizes: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(sizes[d] if isinstance(d, str) else d for d in dims)
