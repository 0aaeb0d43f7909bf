"""Choosing the next token from logits. Sampling is outside the graph (design 9)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ds4export.errors import RuntimeInputError


@dataclass(frozen=True)
class Sampling:
    """temperature 0 takes the most likely token; top_p keeps the smallest set of tokens with that probability."""

    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise RuntimeInputError(
                "--temperature is out of range", found=self.temperature, expected="0 or more"
            )
        if not 0 < self.top_p <= 1:
            raise RuntimeInputError(
                "--top-p is out of range", found=self.top_p, expected="above 0, at most 1"
            )
        if self.seed is not None and self.seed < 0:
            raise RuntimeInputError("--seed is out of range", found=self.seed, expected="0 or more")


class Sampler:
    """A seeded stream of choices."""

    def __init__(self, sampling: Sampling) -> None:
        self.sampling = sampling
        self._rng = np.random.default_rng(sampling.seed)

    def choose(self, logits: NDArray[np.float32]) -> int:
        """One token id from logits [V]; ties go to the lowest id.

        Raises:
            RuntimeInputError: logits that are not numbers.
        """
        if not np.isfinite(logits).all():
            raise RuntimeInputError(
                "the logits are not finite",
                found=f"{np.count_nonzero(~np.isfinite(logits))} of {logits.size} values",
                expected="numbers",
                hint="the weights may be damaged: `ds4export verify` finds where",
            )
        if self.sampling.temperature == 0:
            return int(logits.argmax())
        probs = self.probabilities(logits)
        order = np.argsort(-probs, kind="stable")
        cumulative = probs[order].cumsum()
        kept = min(int(np.searchsorted(cumulative, self.sampling.top_p)) + 1, len(order))
        pick = self._rng.random() * cumulative[kept - 1]
        return int(order[min(int(np.searchsorted(cumulative, pick, side="right")), kept - 1)])

    def probabilities(self, logits: NDArray[np.float32]) -> NDArray[np.float64]:
        """softmax(logits / temperature); the largest is taken off first, so that no temperature overflows."""
        with np.errstate(over="ignore"):  # a distance to the largest may become -inf: probability 0
            scaled = (logits.astype(np.float64) - logits.max()) / self.sampling.temperature
        probs = np.exp(scaled)
        return probs / probs.sum()
