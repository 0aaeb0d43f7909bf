"""The artefact against recorded vectors: the entry, and float32 end to end.

Official numerics is compared op by op from recorded inputs, see `vector_walk`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ds4export.errors import ParityError
from ds4export.parity.backends import Backend
from ds4export.parity.compare import OutputFinding
from ds4export.parity.describe import PREFIX
from ds4export.parity.metrics import Difference, difference
from ds4export.parity.recorded import PREFILL, Vectors
from ds4export.parity.results import FAILED, PASSED, VECTORS, Check
from ds4export.parity.subject import Subject
from ds4export.runtime.runner import Limits, StepInputs

Array = NDArray[Any]
Ids = NDArray[np.int64]

# Absolute, on logits of standard deviation 2: independent implementations agree to 3e-5.
LOGITS_FLOAT32 = 1e-4
ABSOLUTE = " (absolute)"


@dataclass(frozen=True)
class Bound:
    """Bounds of one recorded kind and why: relative over all calls, over a row, least share of identical values."""

    relative: float
    row: float
    identical: float
    reason: str


@dataclass
class VectorTally:
    """Findings by phase, layer and recorded key, merged over steps, and what the graph computed."""

    found: dict[str, OutputFinding] = field(default_factory=dict)
    bounds: dict[str, Bound] = field(default_factory=dict)
    places: dict[str, str] = field(default_factory=dict)
    computed: dict[str, Array] = field(default_factory=dict)

    def add(self, key: str, finding: OutputFinding, bound: Bound, where: str) -> None:
        """Merge one comparison under a key without the step's number; `where` names the op."""
        if not finding.failure and finding.flips is None:
            finding = replace(finding, failure=_row_failure(finding.difference, bound))
        self.found[key] = self.found[key].merged(finding) if key in self.found else finding
        self.bounds[key], self.places[key] = bound, where

    def first(self) -> str:
        """The line of the first key that fails, in the order of the graph."""
        for key, found in self.found.items():
            failure = self._failure(key, found)
            if failure:
                return f"{PREFIX}{self.places[key]}, {key}, {failure}; all before agrees"
        return ""

    def checks(self) -> list[Check]:
        return [self._check(key, f) for key, f in self.found.items()]

    def _failure(self, key: str, found: OutputFinding) -> str:
        d, bound = found.difference, self.bounds[key]
        if found.failure or found.flips is not None or key.endswith(ABSOLUTE):
            return found.failure
        if d.pooled > bound.relative:
            return f"relative error {d.pooled:.2g} (bound {bound.relative:g}), worst {d.where()}"
        if d.identical < bound.identical:
            share = f"{d.identical:.1%} of the values are identical (bound {bound.identical:.0%})"
            return f"{share}, worst {d.where()}"
        return ""

    def _check(self, key: str, found: OutputFinding) -> Check:
        failure = self._failure(key, found)
        check = Check(VECTORS, key, FAILED if failure else PASSED, failure)
        if found.flips is not None:
            flips = found.flips
            return replace(
                check, flips=flips.flipped, choices=flips.total, margin=flips.margin, calls=1
            )
        d, bound = found.difference, self.bounds[key]
        error = d.largest if key.endswith(ABSOLUTE) else d.pooled
        return replace(check, error=error, row=d.row, identical=d.identical, bound=bound.relative)


def _row_failure(d: Difference, bound: Bound) -> str:
    if d.problem or d.row <= bound.row:
        return d.problem
    return f"relative error of a row {d.row:.2g} (bound {bound.row:g}), {d.where()}"


def check_vectors(subject: Subject, backend: Backend, vectors: Vectors) -> VectorTally:
    """Compare an artefact with recorded vectors of its own numerics.

    Raises:
        ParityError: the vectors are not of this model.
    """
    _check_fit(subject, vectors)
    tally = VectorTally()
    if subject.manifest.official:
        from ds4export.parity.vector_walk import walk_vectors

        walk_vectors(subject, backend, vectors, tally)
    else:
        _check_float32(subject, backend, vectors, tally)
    return tally


def _check_fit(subject: Subject, vectors: Vectors) -> None:
    config, logits = subject.manifest.config, vectors.get(f"{PREFILL}.logits")
    whole = subject.manifest.layers == (0, config.num_hidden_layers)
    if whole and logits is not None and logits.shape[-1] == config.vocab_size:
        return
    shape = None if logits is None else list(logits.shape)
    raise ParityError(
        "the recorded vectors are not of this artefact",
        where=vectors.path,
        found=f"logits {shape}" if whole else "an artefact of a range of layers",
        expected=f"a whole model and logits over {config.vocab_size} tokens",
    )


def limits_of(subject: Subject, vectors: Vectors) -> Limits:
    """A pool just large enough for the recorded sequences."""
    tokens = sum(vectors.ids(step).shape[1] for step in vectors.steps())
    return Limits(subject.manifest.config.vocab_size, len(vectors.ids(PREFILL)), tokens)


def inputs_at(limits: Limits, ids: Ids, position: int) -> StepInputs:
    """All rows of ids [B, T] at one position, all logits wanted."""
    batch, width = ids.shape
    return StepInputs.checked(
        limits,
        ids,
        slots=np.arange(batch)[::-1].copy(),
        positions=np.full(batch, position),
        logit_rows=np.tile(np.arange(width), (batch, 1)),
    )


def steps_with_next(vectors: Vectors) -> Iterator[tuple[str, str | None]]:
    """Every step and the one after it."""
    steps = list(vectors.steps())
    yield from zip(steps, [*steps[1:], None], strict=True)


def next_ids(vectors: Vectors, step: str, following: str | None) -> Ids | None:
    """The ids one position later: recorded, or the step's own shifted, with the next step's first."""
    for key in (f"{step}.mtp.ids", f"{step}.mtp.0.ids"):
        recorded = vectors.get(key)
        if recorded is not None:
            return recorded.astype(np.int64)
    if following is None:
        return None
    return np.concatenate((vectors.ids(step)[:, 1:], vectors.ids(following)[:, :1]), 1)


def _check_float32(
    subject: Subject, backend: Backend, vectors: Vectors, tally: VectorTally
) -> None:
    limits = limits_of(subject, vectors)
    run = backend.open(num_slots=limits.num_slots, max_context=limits.max_context)
    position = 0
    for step, following in steps_with_next(vectors):
        ids = vectors.ids(step)
        tally.computed[f"{step}.ids"] = ids.astype(np.int32)
        result = run.runner.step(inputs_at(limits, ids, position))
        _logits(tally, vectors, step, "logits", result.logits)
        shifted = next_ids(vectors, step, following)
        if run.runner.has_mtp and shifted is not None:
            result = run.runner.mtp_step(inputs_at(limits, shifted, position), result.streams)
            _logits(tally, vectors, step, "mtp.logits", result.logits)
        position += ids.shape[1]
    run.close()


def _logits(tally: VectorTally, vectors: Vectors, step: str, key: str, got: Array | None) -> None:
    want = vectors.get(f"{step}.{key}")
    if want is None or got is None:
        return
    tally.computed[f"{step}.{key}"] = got
    found = difference(got, want)
    failure = found.problem
    if not failure and found.largest > LOGITS_FLOAT32:
        failure = f"error {found.largest:.2g} (bound {LOGITS_FLOAT32:g}), {found.where()}"
    name = f"{phase_of(step)}.{key}{ABSOLUTE}"
    bound = Bound(LOGITS_FLOAT32, math.inf, 0.0, "independent implementations agree to 3e-5")
    tally.add(name, OutputFinding(name, found, failure=failure), bound, step)


def phase_of(step: str) -> str:
    """`prefill` or `decode`."""
    return PREFILL if step == PREFILL else "decode"
