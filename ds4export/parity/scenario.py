"""The inputs of a verification: seeded, and designed so that every branch of the state machine is taken.

    A   from position 0: a first chunk, an odd one, one that passes a compressor window and the ring, then decode
    B   from position 0 beside it, ragged
    C   takes part with no token
    D   starts late, with synthetic state: past the top-k cut, past one block of the attention list; one chunk crosses
        a window of every compressor
    E   starts late, two tokens before a window of 128 closes: emission in decode
    F   three tokens in A's slot, then decode: fewer than a window, and the pool remembers A
    G   a chunk in B's slot

The pool is filled with NaN before. Refuses nothing: what a range of layers or a config cannot show is not asked of it
(see `coverage`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from ds4export.config import ModelConfig
from ds4export.runtime.runner import Ints, Limits, StepInputs
from ds4export.state import F32, StateSpec

Array = NDArray[Any]

CSA, HCA = 4, 128
LIST_BLOCK = 64
NUM_SLOTS = 4
SLOT = {"A": 3, "B": 0, "C": 1, "D": 2, "E": 1, "F": 3, "G": 0}


@dataclass(frozen=True)
class LateStart:
    """A sequence that begins at `position` with synthetic state in `slot`."""

    slot: int
    position: int


@dataclass(frozen=True)
class ScenarioStep:
    """One step; `next_ids` are the ids one position later, for MTP."""

    inputs: StepInputs
    next_ids: Ints
    late_starts: tuple[LateStart, ...] = ()

    def mtp_inputs(self) -> StepInputs:
        i = self.inputs
        return StepInputs(self.next_ids, i.slots, i.positions, i.num_new, i.logit_rows)


@dataclass(frozen=True)
class Scenario:
    """Steps over one pool; `packed`: synthetic cache rows are such as packed caches can hold."""

    seed: int
    num_slots: int
    max_context: int
    steps: tuple[ScenarioStep, ...]
    packed: bool = False

    @property
    def num_tokens(self) -> int:
        return sum(int(s.inputs.num_new.sum()) for s in self.steps)


@dataclass
class _Writer:
    """Sequences of random ids, cut into steps."""

    vocab_size: int
    rng: np.random.Generator
    at: dict[str, int] = field(default_factory=dict)
    steps: list[tuple[list[tuple[str, int, int]], tuple[LateStart, ...]]] = field(
        default_factory=list
    )

    def step(self, *rows: tuple[str, int], late: Sequence[str] = ()) -> None:
        """Rows (sequence, number of new tokens); positions go on by themselves."""
        starts = tuple(LateStart(SLOT[name], self.at[name]) for name in late)
        self.steps.append(([(name, self.at.setdefault(name, 0), n) for name, n in rows], starts))
        for name, n in rows:
            self.at[name] += n

    def scenario(self, seed: int) -> Scenario:
        context = max(self.at.values()) + 1
        ids = {name: self.rng.integers(0, self.vocab_size, 1 << 12) for name in self.at}
        limits = Limits(self.vocab_size, NUM_SLOTS, context)
        steps = tuple(self._inputs(rows, starts, ids, limits) for rows, starts in self.steps)
        return Scenario(seed, NUM_SLOTS, context, steps)

    def _inputs(
        self,
        rows: list[tuple[str, int, int]],
        starts: tuple[LateStart, ...],
        ids: dict[str, Ints],
        limits: Limits,
    ) -> ScenarioStep:
        width = max(n for _, _, n in rows)
        table, following = (
            np.stack(
                [
                    np.take(ids[name], np.arange(p, p + width) + shift, mode="wrap")
                    for name, p, _ in rows
                ]
            )
            for shift in (0, 1)
        )
        counts = [n for _, _, n in rows]
        # the last token, the first, one between, and a row that asks for nothing
        logit_rows = [[n - 1, 0 if n else -1, n // 2 if n else -1, -1] for n in counts]
        inputs = StepInputs.checked(
            limits,
            table,
            slots=[SLOT[name] for name, _, _ in rows],
            positions=[p for _, p, _ in rows],
            num_new=counts,
            logit_rows=logit_rows,
        )
        return ScenarioStep(inputs, following, starts)


def make_scenario(
    config: ModelConfig, ratios: frozenset[int], *, seed: int = 0, late: int | None = None
) -> Scenario:
    """The scenario for layers of the given compression ratios.

    Args:
        config: the model's.
        ratios: compression ratios that occur (0 for window layers and MTP).
        seed: of ids and synthetic state.
        late: where D starts; by default just past what the top-k cut and the attention list need.
    """
    w = _Writer(config.vocab_size, np.random.default_rng(seed))
    blocks = _late_blocks(config, ratios) if late is None else late // HCA
    w.at = {"D": blocks * HCA - 3, "E": (blocks + 1) * HCA - 2}
    first, second = 13, 7
    reach = HCA + 3 if HCA in ratios else 0
    long = max(config.sliding_window + 3, reach - first - second)
    w.step(("A", first))
    w.step(("A", second), ("B", 5), ("C", 0))
    w.step(("A", long))
    w.step(("A", 6), ("D", 7), ("B", 2), late=("D",))
    w.step(("A", 1), ("B", 1), ("D", 1), ("E", 1), late=("E",))
    w.step(("A", 1), ("B", 1), ("D", 1), ("E", 1))
    w.step(("A", 1), ("B", 1), ("D", 1))
    w.step(("A", 1), ("B", 1), ("D", 1))
    w.step(("F", 3), ("G", 9))
    w.step(("F", 1), ("G", 1))
    w.step(("F", 1), ("G", 1), ("E", 1))
    return w.scenario(seed)


def short_scenario(
    config: ModelConfig, ratios: frozenset[int], *, chunk: int, decode: int, seed: int = 0
) -> Scenario:
    """One late sequence, past the top-k cut: a chunk that crosses a window of every compressor, then single tokens.

    For real widths where every token costs seconds. Without a chunk the first single token closes the windows.

    Args:
        config: the model's.
        ratios: compression ratios that occur.
        chunk: number of tokens of the chunk, 0 for none.
        decode: number of single tokens after it.
        seed: of ids and synthetic state.
    """
    w = _Writer(config.vocab_size, np.random.default_rng(seed))
    w.at = {"D": _late_blocks(config, ratios) * HCA - (3 if chunk else 1)}
    sizes = ([chunk] if chunk else []) + [1] * decode
    for i, size in enumerate(sizes):
        w.step(("D", size), late=("D",) if i == 0 else ())
    return w.scenario(seed)


def _late_blocks(config: ModelConfig, ratios: frozenset[int]) -> int:
    """Blocks of 128 tokens before the late sequences, as far as the model's positions reach."""
    cut = CSA * (config.index_topk + 8) // HCA + 1 if CSA in ratios else 1
    several = LIST_BLOCK - config.sliding_window + 2 if HCA in ratios else 1
    return max(2, min(max(cut, several), config.max_position_embeddings // HCA - 2))


def synthetic_rows(
    spec: StateSpec, ratio: int, start: LateStart, seed: int, *, official: bool
) -> Array:
    """State rows [rows, width] of a sequence that has come to `start.position`; what it never wrote is NaN."""
    rng = np.random.default_rng([seed, start.slot, start.position, *spec.name.encode()])
    rows = np.full((spec.rows, spec.width), np.nan, np.float32)
    is_ring = spec.name == "window" or spec.name.endswith("pending")
    known = spec.rows - 1 if is_ring else start.position // ratio
    rows[:known] = rng.standard_normal((known, spec.width), np.float32)
    if spec.dtype == F32 or not official:
        return rows
    return rows.astype(ml_dtypes.bfloat16)
