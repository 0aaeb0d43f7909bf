"""Comparing tensors in one fixed order: shape and dtype, places of NaN and infinity, relative error."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Difference:
    """How far a tensor is from the expected one. Rows are slices along the last axis.

    `relative` is ‖got − want‖ / ‖want‖ over the tensor, `worst_row` the largest of the same over
    one row. A row that should be zero and is not is infinitely far.
    """

    relative: float
    worst_row: float
    rows: int
    equal_rows: int
    values: int
    equal_values: int
    largest: float
    worst: str

    def __str__(self) -> str:
        return (
            f"relative {self.relative:.2e}, worst row {self.worst_row:.2e}, "
            f"{self.equal_rows}/{self.rows} rows equal, worst element {self.worst}"
        )


def difference(got: Tensor, want: Tensor, what: str = "tensor") -> Difference:
    """Measure; shape, dtype and places of NaN and infinity must agree already."""
    assert got.dtype == want.dtype, f"{what}: dtype {got.dtype}, expected {want.dtype}"
    assert got.shape == want.shape, f"{what}: shape {got.shape}, expected {want.shape}"
    if not got.dim():
        got, want = got.reshape(1), want.reshape(1)
    got, want = got.double(), want.double()
    _same_places(torch.isnan(got), torch.isnan(want), f"{what}: NaN", got, want)
    _same_places(torch.isinf(got), torch.isinf(want), f"{what}: infinity", got, want)
    special = ~torch.isfinite(want)
    assert torch.equal(torch.isposinf(got), torch.isposinf(want)), f"{what}: signs of infinity"
    got, want = got.masked_fill(special, 0), want.masked_fill(special, 0)
    error = got - want
    rows = [_ratio(float(e), float(w)) for e, w in zip(_norms(error), _norms(want), strict=True)]
    return Difference(
        relative=_ratio(float(error.norm()), float(want.norm())),
        worst_row=max(rows, default=0.0),
        rows=len(rows),
        equal_rows=sum(r == 0 for r in rows),
        values=error.numel(),
        equal_values=int((error == 0).sum()),
        largest=float(error.abs().max()) if error.numel() else 0.0,
        worst=_worst(got, want),
    )


def assert_close(
    got: Tensor, want: Tensor, *, relative: float, row: float = math.inf, what: str = "tensor"
) -> Difference:
    """Fail unless the relative error over the tensor, and over each row, is within its bound."""
    found = difference(got, want, what)
    assert found.relative <= relative, f"{what}: {found}; bound {relative:.1e} over the tensor"
    assert found.worst_row <= row, f"{what}: {found}; bound {row:.1e} over a row"
    return found


def assert_equal(got: Tensor, want: Tensor, what: str = "tensor") -> None:
    """Fail unless all values are equal; NaN equals NaN, and −0 equals 0."""
    assert_close(got, want, relative=0.0, row=0.0, what=what)


def assert_within(got: Tensor, want: Tensor, bound: float, what: str = "tensor") -> float:
    """Fail unless every value is within an absolute bound; returns the largest error."""
    found = difference(got, want, what)
    assert found.largest <= bound, f"{what}: {found}; bound {bound:.1e} absolute"
    return found.largest


def _same_places(got: Tensor, want: Tensor, what: str, values: Tensor, expected: Tensor) -> None:
    wrong = (got != want).nonzero()
    if len(wrong):
        at = tuple(wrong[0].tolist())
        raise AssertionError(
            f"{what} in {len(wrong)} wrong places, first at {at}: "
            f"found {values[at].item()}, expected {expected[at].item()}"
        )


def _norms(values: Tensor) -> Tensor:
    return values.reshape(-1, values.shape[-1]).norm(dim=-1) if values.numel() else values[:0]


def _ratio(error: float, size: float) -> float:
    if error == 0:
        return 0.0
    return error / size if size else math.inf


def _worst(got: Tensor, want: Tensor) -> str:
    if not got.numel():
        return "none"
    flat = int((got - want).abs().argmax())
    at = tuple(int(i) for i in torch.unravel_index(torch.tensor(flat), got.shape))
    return f"{at}: {got[at].item():.9g}, expected {want[at].item():.9g}"
