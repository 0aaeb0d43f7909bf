"""`score`: logits of given ids, as a prefill in chunks and then token by token."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ds4export.errors import RuntimeInputError
from ds4export.runtime.runner import Runner, StepInputs

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Scores:
    """logits float32 [B, T, V], NaN beyond a row's length; `mtp` likewise, NaN where the next id is not known."""

    logits: Floats
    mtp: Floats | None


def score(
    runner: Runner,
    ids: Ints,
    *,
    prefill: int,
    chunk: int | None = None,
    lengths: Ints | None = None,
    with_mtp: bool = False,
    slots: Ints | None = None,
    advance: Callable[[int], None] = lambda _: None,
) -> Scores:
    """Logits of every position of ids [B, T].

    Args:
        runner: its slots 0..B-1 are used unless `slots` are given; each row starts at position 0.
        ids: INT64 [B, T]; beyond a row's length any valid id.
        prefill: the first `prefill` tokens go in chunks, the rest one by one.
        chunk: tokens per chunk; the whole prefill by default.
        lengths: INT64 [B], the whole T by default.
        with_mtp: also run the MTP block: position t is fed with the id at t + 1.
        slots: INT64 [B].
        advance: called with the number of tokens done.

    Raises:
        RuntimeInputError: an argument does not fit the others.
    """
    batch, tokens = _shape(ids)
    lengths = np.full(batch, tokens, np.int64) if lengths is None else lengths
    slots = np.arange(batch, dtype=np.int64) if slots is None else slots
    _check(runner, ids, prefill, chunk, lengths, with_mtp)
    vocab = runner.limits.vocab_size
    logits = np.full((batch, tokens, vocab), np.nan, np.float32)
    mtp = np.full_like(logits, np.nan) if with_mtp else None
    next_ids = np.concatenate((ids[:, 1:], ids[:, :1]), 1)
    at = 0
    while at < tokens:
        width = min(chunk or prefill, prefill - at) if at < prefill else 1
        cut = slice(at, at + width)
        rows = np.flatnonzero(lengths > at)
        num_new = np.clip(lengths[rows] - at, 0, width)

        def inputs(values: Ints, new: Ints, rows: Ints = rows, cut: slice = cut) -> StepInputs:
            every = np.tile(np.arange(values[rows, cut].shape[1]), (len(rows), 1))
            return StepInputs.checked(
                runner.limits,
                values[rows, cut],
                slots=slots[rows],
                positions=np.full(len(rows), cut.start),
                num_new=new,
                logit_rows=every,
            )

        if len(rows):
            result = runner.step(inputs(ids, num_new))
            _store(logits, result.logits, rows, at, num_new)
            if mtp is not None:
                known = np.clip(lengths[rows] - 1 - at, 0, width)
                _store(
                    mtp,
                    runner.mtp_step(inputs(next_ids, known), result.streams).logits,
                    rows,
                    at,
                    known,
                )
        at += width
        advance(width)
    return Scores(logits, mtp)


def _store(out: Floats, found: Floats | None, rows: Ints, at: int, counts: Ints) -> None:
    assert found is not None, "score needs an artefact with a head; _check refuses others"
    for row, values, count in zip(rows, found, counts, strict=True):
        out[row, at : at + count] = values[:count]


def _shape(ids: Ints) -> tuple[int, int]:
    if ids.ndim != 2 or ids.dtype.kind not in "iu" or 0 in ids.shape:
        raise RuntimeInputError(
            "ids are not a table of token ids",
            found=f"{ids.dtype} {list(ids.shape)}",
            expected="int64 [B, T]",
        )
    return ids.shape[0], ids.shape[1]


def _check(
    runner: Runner, ids: Ints, prefill: int, chunk: int | None, lengths: Ints, with_mtp: bool
) -> None:
    batch, tokens = ids.shape
    if not 0 <= prefill <= tokens:
        raise RuntimeInputError(
            "--prefill is out of range", found=prefill, expected=f"0 to {tokens}"
        )
    if chunk is not None and chunk < 1:
        raise RuntimeInputError("--chunk is out of range", found=chunk, expected="1 or more")
    if (
        lengths.shape != (batch,)
        or lengths.dtype.kind not in "iu"
        or lengths.min() < 0
        or lengths.max() > tokens
    ):
        raise RuntimeInputError(
            "lengths do not fit ids",
            found=f"{lengths.dtype} {list(lengths.shape)}, values {lengths.min()} to {lengths.max()}"
            if lengths.size
            else "nothing",
            expected=f"int64 [{batch}] with values 0 to {tokens}",
        )
    if with_mtp and not runner.has_mtp:
        raise RuntimeInputError(
            "the artefact has no MTP graph",
            hint="export a checkpoint that has an MTP block, with its last layer",
        )
