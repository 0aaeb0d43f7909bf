"""A step as an engine can run it: which profile, and in how many pieces.

An engine is built for ranges of batch, tokens and logit rows. Owns the choice of the profile, and the cut of a step
that is larger than all of them: fewer sequences, then fewer tokens at a time, then fewer rows of logits. The state
carries on from piece to piece. Refuses a step for which no profile was built.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ds4export.artefact.manifest import GraphInfo
from ds4export.engine.profile import Shapes
from ds4export.errors import CapacityError
from ds4export.runtime.runner import Ints, StepInputs

Range = tuple[int, int]  # smallest and largest
_ANY: Range = (0, 1 << 62)


@dataclass(frozen=True)
class ProfileRange:
    """What one profile was built for; `index` is its place in the plan."""

    name: str
    index: int
    batch: Range
    tokens: Range
    logit_rows: Range

    def fits(self, batch: int, tokens: int, logit_rows: int) -> bool:
        """Whether a step of these sizes can run in it."""
        sizes = ((batch, self.batch), (tokens, self.tokens), (logit_rows, self.logit_rows))
        return all(least <= size <= most for size, (least, most) in sizes)

    def __str__(self) -> str:
        spans = (("batch", self.batch), ("tokens", self.tokens), ("logit_rows", self.logit_rows))
        return f"{self.name}: " + ", ".join(f"{what} {a} to {b}" for what, (a, b) in spans)


@dataclass(frozen=True)
class Piece:
    """A part of a step: its rows and tokens, and where its rows of logits belong.

    `took`, `puts`: index pairs (sequence, row) in the piece's and in the whole step's logits, [K, 2] each.
    """

    rows: slice
    tokens: slice
    inputs: StepInputs
    took: Ints
    puts: Ints

    def sizes(self) -> tuple[int, int, int]:
        """Batch, tokens, logit rows."""
        return (*self.inputs.ids.shape, self.inputs.logit_rows.shape[1])


def choose_profile(profiles: Sequence[ProfileRange], piece: Piece, where: str) -> ProfileRange:
    """The profile with the fewest tokens that fits.

    Raises:
        CapacityError: none does.
    """
    batch, tokens, logit_rows = piece.sizes()
    fitting = [p for p in profiles if p.fits(batch, tokens, logit_rows)]
    if fitting:
        return min(fitting, key=lambda p: (p.tokens[1], p.index))
    raise CapacityError(
        "the engine was built for no step like this",
        where=where,
        found=f"batch {batch}, tokens {tokens}, logit_rows {logit_rows}",
        expected="; ".join(map(str, profiles)),
        hint="build the engine with a recipe whose profiles hold it (engines/README.md)",
    )


def cut_step(step: StepInputs, profiles: Sequence[ProfileRange]) -> list[Piece]:
    """The step in pieces that the profiles hold; one piece where it fits as it is.

    Pieces follow each other in time: rows of one batch group are complete before the next begins.
    """
    batch, tokens = step.ids.shape
    whole = Piece(slice(0, batch), slice(0, tokens), step, *_all_places(step.logit_rows))
    if any(p.fits(*whole.sizes()) for p in profiles):
        return [whole]
    widest = max(profiles, key=lambda p: (p.tokens[1], p.batch[1]))
    pieces: list[Piece] = []
    for first in range(0, batch, widest.batch[1]):
        rows = slice(first, min(first + widest.batch[1], batch))
        pieces += _cut_tokens(step, rows, widest)
    return pieces


def _cut_tokens(step: StepInputs, rows: slice, profile: ProfileRange) -> list[Piece]:
    pieces, begin, tokens = [], 0, step.ids.shape[1]
    while begin < tokens:
        end = _end(step.logit_rows[rows], begin, min(begin + profile.tokens[1], tokens), profile)
        pieces.append(_piece(step, rows, slice(begin, end), profile.logit_rows[0]))
        begin = end
    return pieces


def _end(wanted_BR: Ints, begin: int, end: int, profile: ProfileRange) -> int:
    """The last token, exclusive, up to which no sequence wants more rows of logits than the profile has."""
    most = profile.logit_rows[1]
    for row in wanted_BR:
        inside = sorted({int(t) for t in row if begin <= t < end})
        if len(inside) > most:
            end = min(end, inside[most])
    return end


def _piece(step: StepInputs, rows: slice, tokens: slice, least_rows: int) -> Piece:
    begin, width = tokens.start, tokens.stop - tokens.start
    wanted = step.logit_rows[rows]
    inside = (wanted >= begin) & (wanted < tokens.stop)
    distinct = [sorted(set(r[i].tolist())) for r, i in zip(wanted, inside, strict=True)]
    columns = max(1, least_rows, *map(len, distinct))
    logit_rows = np.full((len(wanted), columns), -1, np.int64)
    for b, found in enumerate(distinct):
        logit_rows[b, : len(found)] = np.array(found, np.int64) - begin
    puts = np.argwhere(inside)
    took = [(b, distinct[b].index(int(wanted[b, r]))) for b, r in puts]
    done = np.minimum(step.num_new[rows], begin)
    inputs = StepInputs(
        np.ascontiguousarray(step.ids[rows, tokens]),
        step.slots[rows],
        step.positions[rows] + done,
        np.clip(step.num_new[rows] - begin, 0, width),
        logit_rows,
    )
    places = np.array(took, np.int64).reshape(-1, 2)
    return Piece(rows, tokens, inputs, places, puts + np.array([rows.start, 0]))


def _all_places(logit_rows: Ints) -> tuple[Ints, Ints]:
    places = np.argwhere(np.ones_like(logit_rows, bool))
    return places, places


def profile_ranges(
    graph: GraphInfo, profiles: Mapping[str, Mapping[str, Shapes]]
) -> list[ProfileRange]:
    """The ranges of B, T and R in every profile of a plan, in the plan's order; a graph without R takes any."""
    return [
        ProfileRange(
            name, index, *(symbol_ranges(graph, shapes).get(s, _ANY) for s in ("B", "T", "R"))
        )
        for index, (name, shapes) in enumerate(profiles.items())
    ]


def symbol_ranges(graph: GraphInfo, shapes: Mapping[str, Shapes]) -> dict[str, Range]:
    """Smallest and largest size of every symbolic dimension of a graph's inputs in one profile."""
    found: dict[str, Range] = {}
    for tensor in graph.inputs:
        if tensor.name in shapes:
            least, _, most = shapes[tensor.name]
            spans = zip(tensor.dims, least, most, strict=True)
            found |= {dim: (a, b) for dim, a, b in spans if isinstance(dim, str)}
    return found
