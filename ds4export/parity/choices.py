"""Choices: top-k lists and experts, compared as sets; every flip is explained by its margin or it is an error.

A flip is explained where the reference's own scores of what was left out and of what was taken instead differ by no
more than rounding can: one bf16 ulp where scores are bf16, 1e-6 of the score in float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Ints = NDArray[np.int64]

BF16_ULP = 2.0**-7  # largest distance of neighbours relative to the value
FLOAT32_MARGIN = 1e-6
NONE = -1


@dataclass(frozen=True)
class Flips:
    """How two tables of choices [..., k] differ.

    `flipped` counts entries that the reference does not have, `rows` the lists that hold one. `margin` is the largest
    score difference behind a flip, `unexplained` the flips whose margin exceeds what rounding explains. `index` is the
    list of the worst flip, `of` its length.
    """

    flipped: int = 0
    rows: int = 0
    total: int = 0
    margin: float = 0.0
    relative_margin: float = 0.0
    unexplained: int = 0
    index: tuple[int, ...] = ()
    of: int = 0
    worst: int = 0  # flips in the worst list
    problem: str = ""

    def merged(self, other: Flips) -> Flips:
        """The sum of two comparisons; the worst list is that of the larger margin."""
        worse = max(self, other, key=lambda f: (bool(f.problem), f.unexplained > 0, f.margin))
        return Flips(
            self.flipped + other.flipped,
            self.rows + other.rows,
            self.total + other.total,
            max(self.margin, other.margin),
            max(self.relative_margin, other.relative_margin),
            self.unexplained + other.unexplained,
            worse.index,
            worse.of,
            worse.worst,
            self.problem or other.problem,
        )


# index of a list -> scores of all candidates; -inf where a candidate may not be chosen
Scores = Callable[[tuple[int, ...]], Array]


def compare_choices(
    got: Ints, want: Ints, live: NDArray[np.bool_], scores: Scores, *, official: bool
) -> Flips:
    """Compare lists of numbers as sets; `live` masks the leading axes, -1 means no choice."""
    if got.shape != want.shape:
        return Flips(problem=f"shape {list(got.shape)}, reference {list(want.shape)}")
    lists = want[live]
    same = (np.sort(got, -1) == np.sort(want, -1)).all(-1)
    result = Flips(total=int((lists != NONE).sum()))
    for index in map(tuple, np.argwhere(live & ~same).tolist()):
        result = result.merged(_one_list(got[index], want[index], index, scores, official))
    return result


def _one_list(
    got: Ints, want: Ints, index: tuple[int, ...], scores: Scores, official: bool
) -> Flips:
    chosen, wanted = set(got[got != NONE].tolist()), set(want[want != NONE].tolist())
    extra, missing = sorted(chosen - wanted), sorted(wanted - chosen)
    count = max(len(extra), len(missing), 1)
    flips = Flips(flipped=count, rows=1, index=index, of=len(wanted), worst=count)
    all_scores = scores(index)
    if len(chosen) != int((got != NONE).sum()):
        return _bad(flips, "an index stands twice in a list")
    if len(extra) != len(missing) or any(not 0 <= j < len(all_scores) for j in extra):
        return _bad(flips, f"{len(chosen)} indices, reference {len(wanted)}")
    if not np.isfinite(all_scores[extra]).all():
        return _bad(flips, "an index that is not visible was chosen")
    best, worst = float(all_scores[missing].max()), float(all_scores[extra].min())
    margin = best - worst
    relative = margin / max(abs(best), abs(worst), 1e-30)
    allowed = BF16_ULP if official else FLOAT32_MARGIN
    return replace(
        flips,
        margin=margin,
        relative_margin=relative,
        unexplained=count if relative > allowed else 0,
    )


def _bad(flips: Flips, problem: str) -> Flips:
    return replace(
        flips,
        margin=math.inf,
        relative_margin=math.inf,
        unexplained=flips.flipped,
        problem=problem,
    )
