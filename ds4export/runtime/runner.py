"""The protocol that every back end implements, and the checks that hold for all of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ds4export.errors import CapacityError, RuntimeInputError

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Limits:
    """What a runner was made for."""

    vocab_size: int
    num_slots: int
    max_context: int


@dataclass(frozen=True)
class StepInputs:
    """One chunk for several sequences, checked.

    ids [B, T] (padding beyond num_new must be valid ids), slots, positions, num_new [B], logit_rows [B, R]: token
    indices within the chunk whose logits are wanted, -1 for none; all INT64, T >= 1, R >= 1.
    """

    ids: Ints
    slots: Ints
    positions: Ints
    num_new: Ints
    logit_rows: Ints

    @staticmethod
    def checked(
        limits: Limits,
        ids: ArrayLike,
        *,
        slots: ArrayLike,
        positions: ArrayLike,
        num_new: ArrayLike | None = None,
        logit_rows: ArrayLike | None = None,
    ) -> StepInputs:
        """Convert and check one step; by default all T tokens are new and the last one's logits are wanted.

        Raises:
            RuntimeInputError: a shape, id, slot or row that no step can have.
            CapacityError: a sequence would outgrow max_context.
        """
        ids_BT = _ints("ids", ids, 2)
        batch, tokens = ids_BT.shape
        if batch == 0 or tokens == 0:
            raise RuntimeInputError(
                "`ids` are empty", found=list(ids_BT.shape), expected="[B, T] with B, T >= 1"
            )
        new = _ints("num_new", np.full(batch, tokens) if num_new is None else num_new, 1)
        step = StepInputs(
            ids_BT,
            _ints("slots", slots, 1),
            _ints("positions", positions, 1),
            new,
            _ints("logit_rows", new[:, None] - 1 if logit_rows is None else logit_rows, 2),
        )
        _check_shapes(step)
        _check_values(step, limits)
        return step

    def without_logits(self) -> StepInputs:
        """The same step with no logits wanted."""
        return replace(self, logit_rows=np.full((len(self.ids), 1), -1, np.int64))


def _ints(name: str, value: ArrayLike, rank: int) -> Ints:
    try:
        array = np.asarray(value)
    except ValueError as cause:  # rows of different lengths
        raise RuntimeInputError(
            f"`{name}` is not an array", found=str(cause), expected=f"integers with {rank} axes"
        ) from None
    if array.ndim != rank or array.dtype.kind not in "iu":
        raise RuntimeInputError(
            f"`{name}` is not an array of integers",
            found=f"{array.dtype} {list(array.shape)}",
            expected=f"integers with {rank} axes",
        )
    return np.ascontiguousarray(array, np.int64)


def _check_shapes(step: StepInputs) -> None:
    batch = len(step.ids)
    for name in ("slots", "positions", "num_new", "logit_rows"):
        if len(getattr(step, name)) != batch:
            raise RuntimeInputError(
                f"`{name}` has another batch size than `ids`",
                found=len(getattr(step, name)),
                expected=batch,
            )
    if step.logit_rows.shape[1] == 0:
        raise RuntimeInputError(
            "`logit_rows` is empty",
            found=list(step.logit_rows.shape),
            expected="[B, R] with R >= 1; -1 means none",
        )


def _check_values(step: StepInputs, limits: Limits) -> None:
    tokens = step.ids.shape[1]
    for name, array, low, high in (
        ("ids", step.ids, 0, limits.vocab_size - 1),
        ("slots", step.slots, 0, limits.num_slots - 1),
        ("num_new", step.num_new, 0, tokens),
        ("logit_rows", step.logit_rows, -1, tokens - 1),
    ):
        if array.min() < low or array.max() > high:
            raise RuntimeInputError(
                f"`{name}` is out of range",
                found=f"{array.min()} to {array.max()}",
                expected=f"{low} to {high}",
            )
    if len(set(step.slots.tolist())) != len(step.slots):
        raise RuntimeInputError(
            "two rows share a slot", found=step.slots.tolist(), expected="distinct slots"
        )
    if step.positions.min() < 0:
        raise RuntimeInputError(
            "a position is negative", found=int(step.positions.min()), expected="0 or more"
        )
    _check_capacity(step, limits)


def _check_capacity(step: StepInputs, limits: Limits) -> None:
    # A position near the end of INT64 must not wrap round.
    ends = np.minimum(step.positions, limits.max_context + 1) + step.num_new
    if ends.max() > limits.max_context:
        row = int(ends.argmax())
        raise CapacityError(
            "the sequence does not fit the cache",
            where=f"row {row}, slot {step.slots[row]}",
            found=f"{int(step.positions[row]) + int(step.num_new[row])} tokens",
            expected=f"at most {limits.max_context} (max_context)",
            hint="open the artefact with a larger max_context, or shorten the prompt",
        )


@dataclass(frozen=True)
class StepResult:
    """logits float32 [B, R, V] (None where the range has no head or none were asked for); `streams` is opaque."""

    logits: NDArray[np.float32] | None
    streams: Any = None


class Runner(Protocol):
    """A back end: one pool of slots, steps over it."""

    @property
    def limits(self) -> Limits: ...

    @property
    def has_mtp(self) -> bool: ...

    def step(
        self, inputs: StepInputs, *, want_logits: bool = True, streams_in: Any = None
    ) -> StepResult:
        """Run the main graph; updates the pool in place."""

    def mtp_step(self, inputs: StepInputs, streams: Any) -> StepResult:
        """Run the MTP graph: `inputs.ids` are the ids one position later, `streams` those of the same step."""

    def close(self) -> None: ...
