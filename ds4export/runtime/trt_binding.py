"""Where the bytes of every engine input and output lie, and how many there are: decided before anything is allocated.

    weights       one region for each weight, shared by the graphs that read it
    state         one region for each cache; `state.<layer>.<name>_out` is the region of `state.<layer>.<name>`
    io            step inputs and results at the largest shapes of the profiles; a `streams` result and the input
                  that takes it are one region
    activations   one block for all plans, which run one after another; TensorRT says how large

Owns the layout of the four blocks. Refuses graphs that bind one name to two kinds of bytes, a pool larger than the
engine was built for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from ds4export.artefact.manifest import STATE, WEIGHT, GraphInfo, TensorInfo
from ds4export.artefact.weights import NUMPY
from ds4export.engine.profile import Shapes
from ds4export.errors import ArtefactError, CapacityError
from ds4export.runtime.device_memory import MemoryPlan
from ds4export.runtime.step_cut import symbol_ranges

WEIGHTS, STATES, IO, ACTIVATIONS = "weights", "state", "io", "activations"
ALIGNMENT = 256  # what cudaMalloc gives, and what TensorRT wants of activations
_OUT = "_out"


@dataclass(frozen=True)
class PlanShape:
    """One plan as far as planning needs it: its tensors, and its profiles' shapes by input."""

    tensors: GraphInfo
    profiles: Mapping[str, Mapping[str, Shapes]]


@dataclass(frozen=True)
class Region:
    """`num_bytes` from `offset` of a block."""

    block: str
    offset: int
    num_bytes: int


@dataclass(frozen=True)
class BindingPlan:
    """`regions` by name; `bound`: for each graph, the region of every input and output by the tensor's name."""

    regions: Mapping[str, Region]
    bound: Mapping[str, Mapping[str, str]]

    def block_bytes(self, block: str) -> int:
        """Bytes of a block, every region aligned."""
        ends = [r.offset + r.num_bytes for r in self.regions.values() if r.block == block]
        return max(ends, default=0)


def plan_bindings(
    plans: Mapping[str, PlanShape], state_shapes: Mapping[str, tuple[int, ...]]
) -> BindingPlan:
    """Lay out every tensor of all plans.

    Args:
        plans: by graph, `main` first.
        state_shapes: [S, rows, width] of every cache.

    Raises:
        ArtefactError: a tensor that cannot be bound; says which.
    """
    sizes: dict[str, tuple[str, int, str]] = {}  # region -> block, bytes, dtype
    bound: dict[str, dict[str, str]] = {}
    for graph, plan in plans.items():
        bound[graph] = {}
        inputs = {t.name for t in plan.tensors.inputs}
        for tensor in (*plan.tensors.inputs, *plan.tensors.outputs):
            region = _region_name(graph, tensor, inputs)
            block, num_bytes = _size(graph, tensor, plan, state_shapes)
            _merge(sizes, region, (block, num_bytes, tensor.dtype), graph)
            bound[graph][tensor.name] = region
    return BindingPlan(_layout(sizes), bound)


def _region_name(graph: str, tensor: TensorInfo, inputs: set[str]) -> str:
    """Weights and state are known by their names in all graphs, `streams` too; the rest is the graph's own."""
    if tensor.kind == WEIGHT:
        return tensor.name
    if tensor.kind == STATE:
        name = tensor.name
        return name.removesuffix(_OUT) if name not in inputs else name
    return tensor.name if tensor.name == "streams" else f"{graph}/{tensor.name}"


def _size(
    graph: str, tensor: TensorInfo, plan: PlanShape, state_shapes: Mapping[str, tuple[int, ...]]
) -> tuple[str, int]:
    itemsize = NUMPY[tensor.dtype].itemsize
    if tensor.kind == WEIGHT:
        return WEIGHTS, prod(_numbers(graph, tensor, tensor.dims)) * itemsize
    if tensor.kind == STATE:
        shape = state_shapes.get(tensor.name) or state_shapes.get(tensor.name.removesuffix(_OUT))
        if shape is None:
            raise _unbound(graph, tensor, "a cache that the artefact does not keep")
        return STATES, prod(shape) * itemsize
    return IO, max(_step_elements(graph, tensor, plan)) * itemsize


def _step_elements(graph: str, tensor: TensorInfo, plan: PlanShape) -> list[int]:
    """Elements at the largest shape of each profile."""
    counts = []
    for shapes in plan.profiles.values():
        most = {symbol: large for symbol, (_, large) in symbol_ranges(plan.tensors, shapes).items()}
        dims = [most.get(d, d) if isinstance(d, str) else d for d in tensor.dims]
        counts.append(prod(_numbers(graph, tensor, dims)))
    return counts


def _numbers(
    graph: str, tensor: TensorInfo, dims: list[int | str] | tuple[int | str, ...]
) -> list[int]:
    if any(isinstance(d, str) for d in dims):
        raise _unbound(graph, tensor, f"dimensions {list(dims)}")
    return [d for d in dims if isinstance(d, int)]


def _unbound(graph: str, tensor: TensorInfo, found: str) -> ArtefactError:
    return ArtefactError(
        f"`{tensor.name}` of the engine cannot be bound",
        where=f"graph `{graph}`",
        found=found,
        expected="a size from the profiles, the caches or the weight itself",
        hint="build the engine again with this version of ds4export",
    )


def _merge(
    sizes: dict[str, tuple[str, int, str]], region: str, new: tuple[str, int, str], graph: str
) -> None:
    """A region that two tensors share is as large as the larger; block and dtype must agree."""
    old = sizes.setdefault(region, new)
    same_bytes = old[1] == new[1] or old[0] == IO
    if (old[0], old[2]) != (new[0], new[2]) or not same_bytes:
        raise ArtefactError(
            f"`{region}` stands for two kinds of bytes",
            where=f"graph `{graph}`",
            found=f"{new[2]}, {new[1]} bytes of {new[0]}",
            expected=f"{old[2]}, {old[1]} bytes of {old[0]}, as another tensor of this name has it",
            hint="build the engine again with this version of ds4export",
        )
    sizes[region] = (old[0], max(old[1], new[1]), old[2])


def _layout(sizes: Mapping[str, tuple[str, int, str]]) -> dict[str, Region]:
    ends: dict[str, int] = {}
    regions = {}
    for name, (block, num_bytes, _) in sizes.items():
        offset = -(-ends.get(block, 0) // ALIGNMENT) * ALIGNMENT
        regions[name] = Region(block, offset, num_bytes)
        ends[block] = offset + num_bytes
    return regions


def memory_of(plan: BindingPlan) -> MemoryPlan:
    """What the layout takes, activations not yet counted."""
    return MemoryPlan(*(plan.block_bytes(block) for block in (WEIGHTS, STATES, IO)))


def check_pool(
    num_slots: int, max_context: int, built_slots: int, built_context: int, where: object
) -> None:
    """Refuse a pool beyond the shapes that an engine was built for.

    Raises:
        CapacityError: more sequences, or longer ones.
    """
    for what, wanted, built in (
        ("num_slots", num_slots, built_slots),
        ("max_context", max_context, built_context),
    ):
        if wanted > built:
            raise CapacityError(
                f"the engine was built for a smaller {what}",
                where=where,
                found=wanted,
                expected=f"at most {built}",
                hint=f"open with a smaller {what}, or build an engine whose recipe has a larger one",
            )
