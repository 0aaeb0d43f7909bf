"""A plan run once: arrays in, arrays out. For parts of a model that are compared by themselves.

Owns the device memory of that one run. Refuses what TensorRT refuses.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack

import numpy as np

from ds4export.artefact.manifest import GraphInfo
from ds4export.artefact.weights import NUMPY
from ds4export.runtime.device import Array, Device
from ds4export.runtime.trt_plan import LoadedPlan, PlanContext


def run_once(
    plan: LoadedPlan,
    tensors: GraphInfo,
    device: Device,
    arrays: Mapping[str, Array],
    shared: Mapping[str, str],
) -> dict[str, Array]:
    """Every output of a plan of one profile.

    Args:
        plan: read, and checked against `tensors`.
        tensors: inputs and outputs by name; an input with a dimension that is a name is told its array's shape.
        device: where it runs.
        arrays: one for each input.
        shared: output -> the input whose memory it is written to.

    Raises:
        ToolchainError: TensorRT refuses a shape, or fails.
        CapacityError: the device has no room.
    """
    with ExitStack() as stack:
        activations = _allocated(stack, device, plan.activation_bytes)
        context = plan.context(0, activations, plan.activation_bytes, device.stream)
        addresses = {n: _copied(stack, device, a) for n, a in arrays.items()}
        context.bind(addresses)
        dynamic = [t.name for t in tensors.inputs if any(isinstance(d, str) for d in t.dims)]
        context.shape({name: arrays[name].shape for name in dynamic})
        outputs = _outputs(tensors, context)
        for name, array in outputs.items():
            at = addresses[shared[name]] if name in shared else None
            addresses[name] = _allocated(stack, device, array.nbytes) if at is None else at
        context.bind({name: addresses[name] for name in outputs})
        context.enqueue(device.stream)
        for name, array in outputs.items():
            device.copy_out(array, addresses[name])
    return outputs


def _outputs(tensors: GraphInfo, context: PlanContext) -> dict[str, Array]:
    return {t.name: np.empty(context.shape_of(t.name), NUMPY[t.dtype]) for t in tensors.outputs}


def _allocated(stack: ExitStack, device: Device, num_bytes: int) -> int:
    address = device.allocate(num_bytes)
    stack.callback(device.release, address)
    return address


def _copied(stack: ExitStack, device: Device, array: Array) -> int:
    """The array outlives the copy: the caller holds it until the run is over."""
    address = _allocated(stack, device, array.nbytes)
    device.copy_in(address, array)
    return address
