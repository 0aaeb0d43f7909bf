"""From a checkpoint to a model: buffers are views of the memory map, nothing is copied.

Only a layer whose experts the shard does not keep in one run is gathered into memory.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ds4export.checkpoint import Checkpoint
from ds4export.checkpoint.experts import file_order, locate_weight
from ds4export.checkpoint.shard import TensorRef
from ds4export.model.transformer import Transformer


def tensor_from_array(array: NDArray[Any]) -> Tensor:
    """A torch view of a numpy array; ml_dtypes.bfloat16 becomes torch.bfloat16."""
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def array_from_tensor(tensor: Tensor) -> NDArray[Any]:
    """The inverse of `tensor_from_array`."""
    import ml_dtypes

    tensor = tensor.detach().contiguous()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def expert_order(checkpoint: Checkpoint, layers: range) -> tuple[int, ...]:
    """The order of experts in the run of the range's first layer: one table serves all layers."""
    return file_order(checkpoint, f"layers.{layers[0]}.ffn.")


def rows_of_order(order: tuple[int, ...]) -> list[int]:
    """Expert number -> its row in a run of this order."""
    rows = [0] * len(order)
    for row, expert in enumerate(order):
        rows[expert] = row
    return rows


def weight_array(checkpoint: Checkpoint, name: str, order: tuple[int, ...]) -> NDArray[Any]:
    """The array of one model weight by its module path; expert runs are one view where the file allows it."""
    refs, place = locate_weight(checkpoint, name, order)
    if isinstance(place, TensorRef):
        return checkpoint.array(name)
    if place is None:
        parts = [checkpoint.array(ref.name).reshape(1, -1) for ref in refs]
        return np.concatenate(parts).reshape(len(order), 3, -1)
    dtype = np.float32 if place.dtype == "F32" else np.int8
    return checkpoint.raw(place.shard, place.offset, place.nbytes).view(dtype).reshape(place.shape)


def build_model(
    checkpoint: Checkpoint,
    *,
    official: bool,
    layers: range | None = None,
    with_mtp: bool | None = None,
) -> Transformer:
    """The model over the mapped weights of a checkpoint.

    Args:
        checkpoint: open; its maps must outlive the model.
        official: numerics, see `Transformer`.
        layers: a contiguous range of main layers; all by default.
        with_mtp: whether to include MTP; by default where it is there and the range ends with the last layer.
    """
    c = checkpoint.config
    layers = range(c.num_hidden_layers) if layers is None else layers
    if with_mtp is None:
        with_mtp = checkpoint.has_mtp and layers.stop == c.num_hidden_layers
    float_scales = checkpoint.scale_dtype == "F32"
    model = Transformer(c, layers, official=official, float_scales=float_scales, with_mtp=with_mtp)
    order = expert_order(checkpoint, layers)
    model.expert_rows = torch.tensor(rows_of_order(order))
    for path, module in model.named_modules():
        for name, buffer in list(module.named_buffers(recurse=False)):
            full = f"{path}.{name}" if path else name
            value = tensor_from_array(weight_array(checkpoint, full, order))
            assert value.shape == buffer.shape, f"{full}: {value.shape} is not {buffer.shape}"
            module.register_buffer(name, value)
    return model
