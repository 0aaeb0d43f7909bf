"""How far two arrays are apart: shape and dtype first, then the places of NaN and infinity, then values.

Owns the numbers, not the verdict: bounds come from the op. Works on numpy arrays, bfloat16 as ml_dtypes.bfloat16.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Index = tuple[int, ...]


@dataclass(frozen=True)
class Difference:
    """One comparison. `relative` is ‖got − want‖ / ‖want‖ over the tensor, `row` the largest over one last axis.

    `problem` is set where values could not be compared: another shape or dtype, NaN or infinity in other places.
    `index`, `got` and `want` name the worst element: the farthest one in the worst row.
    """

    count: int = 0
    relative: float = 0.0
    error_square: float = 0.0  # ‖got − want‖², for errors over several calls
    want_square: float = 0.0
    row: float = 0.0
    largest: float = 0.0  # absolute
    cosine: float = 1.0
    identical: float = 1.0  # share of values that are equal
    problem: str = ""
    index: Index = ()
    got: float = 0.0
    want: float = 0.0

    @property
    def pooled(self) -> float:
        """Relative error over everything merged: one flipped rounding of a short tensor weighs little in it."""
        if self.problem:
            return math.inf
        if self.want_square == 0:
            return math.inf if self.error_square > 0 else 0.0
        return math.sqrt(self.error_square / self.want_square)

    def where(self) -> str:
        """The worst element in words, or the problem."""
        if self.problem:
            return self.problem
        return f"at {list(self.index)}: {self.got:.6g}, reference {self.want:.6g}"

    def merged(self, other: Difference) -> Difference:
        """The worse of two, number by number; the worst element is that of the larger row error."""
        worse = (
            self if (bool(self.problem), self.row) >= (bool(other.problem), other.row) else other
        )
        total = self.count + other.count
        same = self.identical * self.count + other.identical * other.count
        return replace(
            worse,
            count=total,
            relative=max(self.relative, other.relative),
            error_square=self.error_square + other.error_square,
            want_square=self.want_square + other.want_square,
            row=max(self.row, other.row),
            largest=max(self.largest, other.largest),
            cosine=min(self.cosine, other.cosine),
            identical=same / total if total else 1.0,
            problem=self.problem or other.problem,
        )


def difference(got: Array, want: Array, live: NDArray[np.bool_] | None = None) -> Difference:
    """Compare two arrays; `live` (a mask over leading axes) chooses what counts.

    Returns:
        The difference; indices are those of the whole arrays.
    """
    if got.shape != want.shape or got.dtype != want.dtype:
        return Difference(problem=_mismatch(got, want))
    if want.ndim == 0:
        got, want = got.reshape(1), want.reshape(1)
    places = np.ones(want.shape[:1], bool) if live is None else live
    got_rows, want_rows = got[places].astype(np.float64), want[places].astype(np.float64)
    if want_rows.size == 0:
        return Difference()
    index = np.argwhere(places)
    special = _special(got_rows, want_rows, index)
    if special is not None:
        return special
    finite = np.isfinite(want_rows)
    g, w = np.where(finite, got_rows, 0.0), np.where(finite, want_rows, 0.0)
    error = np.abs(g - w)
    row_error, row_norm = _last_norm(error), _last_norm(w)
    rows = np.divide(
        row_error, row_norm, out=np.where(row_error > 0, np.inf, 0.0), where=row_norm > 0
    )
    worst = np.unravel_index(int(rows.argmax()), rows.shape)
    element = tuple(int(i) for i in worst)
    if error.ndim > rows.ndim:
        element = (*element, int(error[element].argmax()))
    norm, total = float(np.linalg.norm(w)), float(np.linalg.norm(error))
    return Difference(
        count=error.size,
        relative=total / norm if norm > 0 else (math.inf if total > 0 else 0.0),
        error_square=total * total,
        want_square=norm * norm,
        row=float(rows.max()),
        largest=float(error.max()),
        cosine=_cosine(g, w),
        identical=float((error == 0).mean()),
        index=(*(int(i) for i in index[element[0]]), *element[1:]),
        got=float(g[element]),
        want=float(w[element]),
    )


def equal_bits(a: Array, b: Array) -> NDArray[np.bool_]:
    """Elementwise equality in which NaN equals NaN."""
    if a.dtype.kind in "iub":
        return np.asarray(a == b)
    x, y = a.astype(np.float32), b.astype(np.float32)
    return np.asarray((x == y) | (np.isnan(x) & np.isnan(y)))


def _mismatch(got: Array, want: Array) -> str:
    if got.shape != want.shape:
        return f"shape {list(got.shape)}, reference {list(want.shape)}"
    return f"dtype {got.dtype}, reference {want.dtype}"


def _special(got: Array, want: Array, index: NDArray[np.intp]) -> Difference | None:
    """NaN, +inf or -inf where the other has something else."""
    for name, test in (("NaN", np.isnan), ("infinity", np.isinf)):
        wrong = test(got) != test(want)
        if name == "infinity":
            wrong |= np.isinf(got) & np.isinf(want) & (np.sign(got) != np.sign(want))
        if wrong.any():
            first = np.argwhere(wrong)[0]
            at = (*(int(i) for i in index[first[0]]), *(int(i) for i in first[1:]))
            here = tuple(first)
            share = f"{int(wrong.sum())} of {got.size}"
            return Difference(
                count=got.size,
                relative=math.inf,
                row=math.inf,
                problem=f"{name} in other places than the reference, {share}, first at {list(at)}: "
                f"{got[here]:.6g}, reference {want[here]:.6g}",
                index=at,
                got=float(got[here]),
                want=float(want[here]),
            )
    return None


def _last_norm(values: Array) -> NDArray[np.float64]:
    if values.ndim == 1:
        return np.abs(values)
    return np.asarray(np.sqrt(np.square(values).sum(-1)))


def _cosine(a: Array, b: Array) -> float:
    norm = float(np.linalg.norm(a)) * float(np.linalg.norm(b))
    return float(np.vdot(a, b)) / norm if norm > 0 else 1.0
