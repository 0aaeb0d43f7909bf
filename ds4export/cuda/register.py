"""`torch.ops.ds4` on a device: each op's kernel as its implementation for that device.

Owns outputs and workspace: they come from torch's allocator, in the shapes of the op's fake kernel, and the launch goes
to torch's current stream. An output that shares its input's buffer is a copy of it, as the functional op demands, or
the buffer itself where the caller says so.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ds4export.cuda.library import KernelLibrary
from ds4export.ops import ALL_OPS
from ds4export.ops._define import DOMAIN, OpDef

DISPATCH_KEYS = {"cuda": "CUDA", "cpu": "CPU"}
# Where a kernel did not write, floats are NaN and integers a number that no op returns.
UNWRITTEN_INTEGER = -(1 << 40)


@dataclass(frozen=True)
class Caller:
    """Runs an op by its kernel.

    `in_place`: state outputs are their inputs. `poison`: what is allocated, workspace included, is filled with NaN
    first.
    """

    library: KernelLibrary
    in_place: bool = False
    poison: bool = False

    def __call__(
        self, op: OpDef, inputs: Sequence[Tensor], attributes: Sequence[Any]
    ) -> list[Tensor]:
        """The outputs of one op; raises as `KernelLibrary.launch`."""
        inputs = [tensor.contiguous() for tensor in inputs]
        outputs = self._outputs(op, inputs, attributes)
        num_bytes = self.library.workspace_bytes(op, [*inputs, *outputs], attributes)
        device = inputs[0].device
        workspace = torch.empty(num_bytes, dtype=torch.int8, device=device) if num_bytes else None
        if workspace is not None and self.poison:
            workspace.fill_(-1)
        self.library.launch(op, inputs, attributes, outputs, workspace, stream_of(device))
        return outputs

    def _outputs(
        self, op: OpDef, inputs: Sequence[Tensor], attributes: Sequence[Any]
    ) -> list[Tensor]:
        made = op.fake(*(t.to("meta") for t in inputs), *attributes)
        described = made if isinstance(made, tuple) else (made,)
        by_name, aliases = dict(zip(op.inputs, inputs, strict=True)), op.aliases or {}
        outputs = []
        for name, like in zip(op.outputs, described, strict=True):
            if name in aliases:
                source = by_name[aliases[name]]
                outputs.append(source if self.in_place else source.clone())
            else:
                outputs.append(self._allocated(like, inputs[0].device))
        return outputs

    def _allocated(self, like: Tensor, device: torch.device) -> Tensor:
        if not self.poison:
            return torch.empty(like.shape, dtype=like.dtype, device=device)
        floating = like.is_floating_point()
        fill = torch.nan if floating else max(UNWRITTEN_INTEGER, torch.iinfo(like.dtype).min)
        return torch.full(like.shape, fill, dtype=like.dtype, device=device)


def stream_of(device: torch.device) -> int:
    """The handle of torch's current stream; 0 where there are no streams."""
    return int(torch.cuda.current_stream(device).cuda_stream) if device.type == "cuda" else 0


@contextmanager
def registered(caller: Caller, device: str = "cuda") -> Iterator[None]:
    """While it is open, `torch.ops.ds4` runs by the caller's kernels on tensors of that device.

    On `cpu`, which is for the stand-in runtime, they take the place of the references.
    """
    with torch.library._scoped_library(DOMAIN, "IMPL") as library:
        for name in caller.library.ops:
            run, key = _implementation(ALL_OPS[name], caller), DISPATCH_KEYS[device]
            if device == "cpu":
                _override(library, name, run)
            else:
                library.impl(name, run, key)
        yield


def _override(library: torch.library.Library, name: str, run: Callable[..., Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of the reference that is overridden: meant
        library.impl(name, run, DISPATCH_KEYS["cpu"], allow_override=True)


def _implementation(op: OpDef, caller: Caller) -> Callable[..., Any]:
    count = len(op.inputs)

    def run(*arguments: Any) -> Any:
        outputs = caller(op, arguments[:count], arguments[count:])
        return tuple(outputs) if len(outputs) > 1 else outputs[0]

    return run
