"""The noise floor: the reference once more, with every sum taken in another order.

The same maths, the same roundings; matrix products and reductions are split and reversed along the axis they sum
over. What comes out apart is what no implementation can be asked to match.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ds4export.ops import ALL_OPS
from ds4export.ops._define import DOMAIN
from ds4export.parity.reference import Call, OpMode, call_reference

aten = torch.ops.aten


class ReorderedSums(OpMode):
    """Under it, sums of float32 run in two parts, each from the last element to the first."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Replace the ops that sum; run all others as they are."""
        replace = _REPLACED.get(func)
        if replace is not None and args[0].dtype == torch.float32:
            return replace(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def reordered(call: Call) -> Call:
    """The call with its sums in another order."""
    with ReorderedSums():
        return call_reference(call.op, call.inputs, call.attributes)


def _halves(size: int) -> tuple[slice, slice]:
    cut = size // 3
    return slice(0, cut), slice(cut, size)


def _product(multiply: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    def run(a: Tensor, b: Tensor) -> Tensor:
        a, b = a.flip(-1), b.flip(-2)
        first, second = _halves(a.shape[-1])
        return multiply(a[..., second], b[..., second, :]) + multiply(
            a[..., first], b[..., first, :]
        )

    return run


def _sum(
    x: Tensor, dims: Sequence[int] | None = None, keepdim: bool = False, **options: Any
) -> Tensor:
    if not dims or len(dims) != 1:
        return torch.as_tensor(aten.sum.dim_IntList(x, dims, keepdim, **options))
    x = x.flip(dims[0])
    parts = (x.narrow(dims[0], s.start, s.stop - s.start) for s in _halves(x.shape[dims[0]]))
    first, second = (aten.sum.dim_IntList(p, dims, keepdim, **options) for p in parts)
    return torch.add(second, first)


def _mean(
    x: Tensor, dims: Sequence[int] | None = None, keepdim: bool = False, **options: Any
) -> Tensor:
    if not dims or len(dims) != 1:
        return torch.as_tensor(aten.mean.dim(x, dims, keepdim, **options))
    return _sum(x, dims, keepdim, **options) / x.shape[dims[0]]


def _softmax(x: Tensor, dim: int, half_to_float: bool) -> Tensor:
    e = (x - x.amax(dim, keepdim=True)).exp()
    return e / _sum(e, [dim], True)


_REPLACED: dict[Any, Callable[..., Tensor]] = {
    aten.mm.default: _product(aten.mm.default),
    aten.bmm.default: _product(aten.bmm.default),
    aten.sum.dim_IntList: _sum,
    aten.mean.dim: _mean,
    aten._softmax.default: _softmax,
}


class ReorderedOps(OpMode):
    """Under it, every ds4 op runs with its sums in another order: a whole model's noise floor."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Replace our ops; run all others as they are."""
        if func.namespace != DOMAIN:
            return func(*args, **(kwargs or {}))
        op = ALL_OPS[func._schema.name.split("::")[1]]
        with ReorderedSums():
            return op.reference(*args)
