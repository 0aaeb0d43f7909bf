"""The reference: the PyTorch definition over the artefact's own checkpoint, with every op call recorded.

Owns the record of calls. Refuses to look at anything of the artefact but its manifest: what is wrong with a graph, a
body or a binding must not reach the reference.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ds4export.artefact import Artefact
from ds4export.checkpoint import Checkpoint, open_checkpoint
from ds4export.errors import ArtefactError
from ds4export.model import Transformer, build_model
from ds4export.ops import ALL_OPS
from ds4export.ops._define import BOUNDARY, DOMAIN, OpDef

Observer = Callable[["Call"], None]


@dataclass(frozen=True)
class Call:
    """One call of a ds4 op by the reference: tensors in schema order, then attributes."""

    op: OpDef
    inputs: tuple[Tensor, ...]
    attributes: tuple[Any, ...]
    outputs: tuple[Tensor, ...]

    @property
    def is_official(self) -> bool:
        """Whether the call is one of official numerics: something at its boundary is bf16, weights aside."""
        kinds = zip(
            (*self.inputs, *self.outputs),
            (*self.op.inputs.values(), *self.op.outputs.values()),
            strict=True,
        )
        return any(kind == BOUNDARY and t.dtype == torch.bfloat16 for t, kind in kinds)

    def input(self, name: str) -> Tensor:
        return self.inputs[list(self.op.inputs).index(name)]


class OpMode(TorchDispatchMode):
    """The base of our dispatch modes; torch leaves its own untyped."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]


class Recorder(OpMode):
    """Keeps every ds4 call made under it, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run the op; record it if it is one of ours."""
        result = func(*args, **(kwargs or {}))
        if func.namespace == DOMAIN:
            op = ALL_OPS[func._schema.name.split("::")[1]]
            count = len(op.inputs)
            outputs = result if isinstance(result, tuple) else (result,)
            self.calls.append(Call(op, args[:count], args[count:], tuple(outputs)))
        return result


def call_reference(op: OpDef, inputs: tuple[Tensor, ...], attributes: tuple[Any, ...]) -> Call:
    """The reference op on inputs of one's own."""
    with torch.no_grad():
        result = op.reference(*inputs, *attributes)
    return Call(op, inputs, attributes, result if isinstance(result, tuple) else (result,))


def open_reference_checkpoint(artefact: Artefact, given: Path | None) -> Checkpoint:
    """The checkpoint that the artefact was exported from, also for an artefact that holds its own weights.

    Raises:
        ArtefactError: it is not where the manifest says.
    """
    link = artefact.manifest.checkpoint
    places = [artefact.path / link.relative_path, Path(link.absolute_path)]
    places = [p for p in (given, artefact.checkpoint_path) if p is not None] or places
    for place in places:
        if place.is_dir():
            return open_checkpoint(place)
    raise ArtefactError(
        "there is no checkpoint to verify against",
        where=artefact.path,
        found="no folder at " + " or ".join(str(p) for p in places),
        expected="the checkpoint that the artefact was exported from",
        hint="name its place with --checkpoint DIR",
    )


def reference_model(artefact: Artefact, checkpoint: Checkpoint, layers: range) -> Transformer:
    """The reference for main layers `layers` of the artefact; MTP where the artefact has it and they end with it."""
    manifest = artefact.manifest
    with_mtp = "mtp" in manifest.graphs and layers.stop == manifest.layers[1]
    return build_model(checkpoint, official=manifest.official, layers=layers, with_mtp=with_mtp)
