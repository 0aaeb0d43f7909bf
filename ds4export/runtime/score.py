"""`score`: logits of given ids, as a prefill in chunks and then token by token."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ds4export.errors import CapacityError, RuntimeInputError
from ds4export.runtime.runner import Limits, Runner, StepInputs

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
AnyInts = NDArray[np.integer[Any]]


@dataclass(frozen=True)
class Scores:
    """logits float32 [B, T, V], NaN beyond a row's length; `mtp` likewise, NaN where the next id is not known."""

    logits: Floats
    mtp: Floats | None


def score(
    runner: Runner,
    ids: AnyInts,
    *,
    prefill: int,
    chunk: int | None = None,
    lengths: AnyInts | None = None,
    with_mtp: bool = False,
    slots: Ints | None = None,
    advance: Callable[[int], None] = lambda _: None,
) -> Scores:
    """Logits of every position of ids [B, T].

    Args:
        runner: its slots 0..B-1 are used unless `slots` are given; each row starts at position 0.
        ids: integers [B, T]; what stands beyond a row's length is not looked at.
        prefill: the first `prefill` tokens go in chunks, the rest one by one.
        chunk: tokens per chunk; the whole prefill by default.
        lengths: integers [B], the whole T by default.
        with_mtp: also run the MTP block: position t is fed with the id at t + 1.
        slots: INT64 [B].
        advance: called with the number of tokens done.

    Raises:
        RuntimeInputError: an argument does not fit the others, or the artefact has no head.
        CapacityError: more tokens than max_context; nothing is written then.
    """
    batch, tokens = _shape(ids)
    _check(runner, tokens, prefill, chunk, with_mtp)
    ends = _lengths(np.full(batch, tokens) if lengths is None else lengths, batch, tokens)
    slots = np.arange(batch, dtype=np.int64) if slots is None else slots
    known_ids = np.where(np.arange(tokens) < ends[:, None], ids, 0).astype(np.int64)
    next_ids = np.roll(known_ids, -1, 1)  # the last position's is never used
    logits = np.full((batch, tokens, runner.limits.vocab_size), np.nan, np.float32)
    mtp = np.full_like(logits, np.nan) if with_mtp else None
    for at, width in _cuts(tokens, prefill, chunk):
        rows = np.flatnonzero(ends > at)
        if len(rows):
            place = _Place(runner.limits, slots[rows], rows, at, width)
            num_new = np.clip(ends[rows] - at, 0, width)
            result = runner.step(place.inputs(known_ids, num_new))
            place.store(logits, result.logits, num_new)
            if mtp is not None:
                known = np.clip(ends[rows] - 1 - at, 0, width)
                found = runner.mtp_step(place.inputs(next_ids, known), result.streams)
                place.store(mtp, found.logits, known)
        advance(width)
    return Scores(logits, mtp)


def _cuts(tokens: int, prefill: int, chunk: int | None) -> Iterator[tuple[int, int]]:
    """(begin, width) of every step."""
    at = 0
    while at < tokens:
        width = min(chunk or prefill, prefill - at) if at < prefill else 1
        yield at, width
        at += width


@dataclass(frozen=True)
class _Place:
    """The cut of the table that one step works on: `width` tokens from `at` of some rows."""

    limits: Limits
    slots: Ints
    rows: Ints
    at: int
    width: int

    def inputs(self, ids: Ints, num_new: Ints) -> StepInputs:
        batch = len(self.rows)
        return StepInputs.checked(
            self.limits,
            ids[self.rows, self.at : self.at + self.width],
            slots=self.slots,
            positions=np.full(batch, self.at),
            num_new=num_new,
            logit_rows=np.tile(np.arange(self.width), (batch, 1)),
        )

    def store(self, out: Floats, found: Floats | None, counts: Ints) -> None:
        if found is None:
            raise RuntimeInputError(
                "there are no logits to write",
                found="a range of layers without the head",
                expected="an artefact that ends with the last layer",
            )
        for row, values, count in zip(self.rows, found, counts, strict=True):
            out[row, self.at : self.at + count] = values[:count]


def _shape(ids: AnyInts) -> tuple[int, int]:
    if ids.ndim != 2 or ids.dtype.kind not in "iu" or 0 in ids.shape:
        raise RuntimeInputError(
            "ids are not a table of token ids",
            found=f"{ids.dtype} {list(ids.shape)}",
            expected="int64 [B, T]",
        )
    return ids.shape[0], ids.shape[1]


def _lengths(lengths: AnyInts, batch: int, tokens: int) -> Ints:
    """As INT64, whatever integers came: differences of small or unsigned ones would wrap."""
    fits = lengths.shape == (batch,) and lengths.dtype.kind in "iu"
    if not fits or lengths.min() < 0 or lengths.max() > tokens:
        values = f", values {lengths.min()} to {lengths.max()}" if fits else ""
        raise RuntimeInputError(
            "lengths do not fit ids",
            found=f"{lengths.dtype} {list(lengths.shape)}{values}",
            expected=f"int64 [{batch}] with values 0 to {tokens}",
        )
    return lengths.astype(np.int64)


def _check(runner: Runner, tokens: int, prefill: int, chunk: int | None, with_mtp: bool) -> None:
    if not 0 <= prefill <= tokens:
        raise RuntimeInputError(
            "--prefill is out of range", found=prefill, expected=f"0 to {tokens}"
        )
    if chunk is not None and chunk < 1:
        raise RuntimeInputError("--chunk is out of range", found=chunk, expected="1 or more")
    if with_mtp and not runner.has_mtp:
        raise RuntimeInputError(
            "the artefact has no MTP graph",
            found="main only",
            expected="main and mtp",
            hint="export a checkpoint that has an MTP block, with its last layer",
        )
    if tokens > runner.limits.max_context:
        raise CapacityError(
            "the ids do not fit the cache",
            found=f"{tokens} tokens",
            expected=f"at most {runner.limits.max_context} (max_context)",
            hint="open the artefact with a larger max_context",
        )
