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


class Sampler:
    """A seeded stream of choices."""

    def __init__(self, sampling: Sampling) -> None:
        self.sampling = sampling
        self._rng = np.random.default_rng(sampling.seed)

    def choose(self, logits: NDArray[np.float32]) -> int:
        """One token id from logits [V]; ties go to the lowest id."""
        if self.sampling.temperature == 0:
            return int(logits.argmax())
        scaled = logits.astype(np.float64) / self.sampling.temperature
        probs = np.exp(scaled - scaled.max())
        probs /= probs.sum()
        order = np.argsort(-probs, kind="stable")
        cumulative = probs[order].cumsum()
        kept = int(np.searchsorted(cumulative, self.sampling.top_p)) + 1
        kept = min(kept, len(order))
        pick = self._rng.random() * cumulative[kept - 1]
        return int(order[min(int(np.searchsorted(cumulative, pick, side="right")), kept - 1)])
