"""The routed experts of a layer as one run of bytes, where a shard keeps them together.

safetensors sorts tensors by dtype, then by name, so a shard that holds a whole layer holds its packed expert weights as
[E, 3 (w1, w2, w3), bytes], experts in the order of their names as text (0, 1, 10, 2, …), and their scales likewise.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from ds4export.checkpoint.reader import Checkpoint
from ds4export.checkpoint.shard import TensorRef

MATRICES = ("w1", "w2", "w3")
_EXPERTS = ".ffn.experts."


@dataclass(frozen=True)
class ExpertRun:
    """One contiguous range of a shard that holds `kind` of all experts of a layer."""

    shard: str
    offset: int
    nbytes: int
    dtype: str
    shape: tuple[int, int, int]  # [E, 3, elements]


def expert_tensors(
    checkpoint: Checkpoint, prefix: str, kind: str, order: tuple[int, ...]
) -> list[TensorRef]:
    """The tensors `{prefix}experts.{e}.{w}.{kind}` in run order."""
    return [checkpoint.tensors[f"{prefix}experts.{e}.{w}.{kind}"] for e in order for w in MATRICES]


def file_order(checkpoint: Checkpoint, prefix: str) -> tuple[int, ...]:
    """Expert numbers by the place of their weights in the file."""
    at = {
        e: checkpoint.tensors[f"{prefix}experts.{e}.w1.weight"].offset
        for e in range(checkpoint.config.n_routed_experts)
    }
    return tuple(sorted(at, key=lambda e: at[e]))


def expert_run(
    checkpoint: Checkpoint, prefix: str, kind: str, order: tuple[int, ...]
) -> ExpertRun | None:
    """The run of `kind` ("weight" or "scale") in this order, or None where the file breaks it."""
    refs = expert_tensors(checkpoint, prefix, kind, order)
    first = refs[0]
    for n, ref in enumerate(refs):
        if ref.shard != first.shard or ref.nbytes != first.nbytes:
            return None
        if ref.offset != first.offset + n * first.nbytes:
            return None
    shape = (len(order), len(MATRICES), prod(first.shape))
    return ExpertRun(first.shard, first.offset, first.nbytes * len(refs), first.dtype, shape)


def locate_weight(
    checkpoint: Checkpoint, name: str, order: tuple[int, ...]
) -> tuple[list[TensorRef], TensorRef | ExpertRun | None]:
    """The tensors behind a model weight, and the one range that holds them if there is one.

    `name` is a module path: a tensor's own name, or `{layer}.ffn.experts.{weight,scale}` for all experts of a layer.
    """
    layer, experts, kind = name.partition(_EXPERTS)
    if not experts:
        ref = checkpoint.tensors[name]
        return [ref], ref
    refs = expert_tensors(checkpoint, f"{layer}.ffn.", kind, order)
    return refs, expert_run(checkpoint, f"{layer}.ffn.", kind, order)


def weight_of_tensor(name: str) -> str:
    """The model weight that a tensor is part of: the inverse of `locate_weight`."""
    layer, experts, rest = name.partition(_EXPERTS)
    return f"{layer}{_EXPERTS}{rest.rsplit('.', 1)[-1]}" if experts else name
