"""One live sequence: a slot of the pool and a position in it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from ds4export.errors import CapacityError, RuntimeInputError
from ds4export.runtime.runner import Runner, StepInputs

PREFILL_CHUNK = 256


class LiveSequence:
    """Appends tokens to a slot; leaving the `with` block, or `close`, gives the slot back."""

    def __init__(self, runner: Runner, slot: int, release: Callable[[int], None]) -> None:
        self.slot, self.position = slot, 0
        self._runner, self._release = runner, release
        self._is_open = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the slot back; a second call does nothing."""
        if self._is_open:
            self._is_open = False
            self._release(self.slot)

    def append(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Process more tokens; returns the logits [V] after the last one.

        Raises:
            CapacityError: they do not all fit; nothing is written then.
            RuntimeInputError: no tokens, ids out of range, or the sequence is closed.
        """
        self._check(ids)
        for at in range(0, len(ids), PREFILL_CHUNK):
            inputs = self._inputs(ids[at : at + PREFILL_CHUNK])
            is_last = at + PREFILL_CHUNK >= len(ids)
            result = self._runner.step(inputs, want_logits=is_last)
            self.position += inputs.ids.shape[1]
        if result.logits is None:
            raise RuntimeInputError(
                "there are no logits to choose a token from",
                found="a range of layers without the head",
                expected="an artefact that ends with the last layer",
            )
        return result.logits[0, -1]

    def _inputs(self, ids: Sequence[int]) -> StepInputs:
        return StepInputs.checked(
            self._runner.limits, [list(ids)], slots=[self.slot], positions=[self.position]
        )

    def _check(self, ids: Sequence[int]) -> None:
        if not self._is_open:
            raise RuntimeInputError("the sequence is closed", hint="open another one")
        if not len(ids):
            raise RuntimeInputError("there are no tokens to append", expected="at least one token")
        context = self._runner.limits.max_context
        if self.position + len(ids) > context:
            raise CapacityError(
                "the tokens do not fit the cache",
                where=f"slot {self.slot}, position {self.position}",
                found=f"{self.position + len(ids)} tokens",
                expected=f"at most {context} (max_context)",
                hint="open the artefact with a larger max_context, or shorten the text",
            )
        self._inputs(ids)  # a bad id in a later chunk is found before the first one is written
