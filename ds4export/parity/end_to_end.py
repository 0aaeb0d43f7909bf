"""End to end: the artefact by itself, step after step, its own state carried along, beside the reference.

Float32 is judged on logits and state. Official numerics is chaotic in detail (one flipped rounding moves a row, a
flipped expert a whole token), so there it is reported, with the noise floor beside it, and only a run that has nothing
to do with the reference fails; the details are judged op by op.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ds4export.parity.backends import EndToEnd
from ds4export.parity.compare import live_rows, live_tokens
from ds4export.parity.metrics import Difference, difference, equal_bits
from ds4export.parity.records import Record
from ds4export.parity.results import END_TO_END, FAILED, PASSED, Check
from ds4export.parity.subject import MAIN
from ds4export.runtime.runner import StepInputs

Array = NDArray[Any]

# Absolute error of float32 logits per unit of half their standard deviation: independent implementations agree to
# 1.3e-5 on logits of standard deviation 2; 1e-4 leaves room for deeper models and other sums.
LOGITS_FLOAT32 = 1e-4
# Relative error of float32 streams and state over a tensor.
TENSOR_FLOAT32 = 1e-4
# Relative error of anything in official numerics: unrelated logits give 1.4, flipped experts up to 0.4.
SANITY_OFFICIAL = 0.7
LOGITS = "logits"


@dataclass
class Agreement:
    """How often the most likely token is the same."""

    same: int = 0
    total: int = 0

    def add(self, got: Array, want: Array, live: NDArray[np.bool_]) -> None:
        self.same += int((got[live].argmax(-1) == want[live].argmax(-1)).sum())
        self.total += int(live.sum())


@dataclass
class EndToEndTally:
    """Differences of whole runs by output, merged over steps."""

    official: bool
    found: dict[str, Difference] = field(default_factory=dict)
    floors: dict[str, Difference] = field(default_factory=dict)
    bounds: dict[str, float] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    agreement: dict[str, Agreement] = field(default_factory=dict)

    def logits(self, name: str, got: Array, want: Array, step: StepInputs) -> bool:
        """Compare logits [B, R, V]; True where they are within bounds."""
        live = live_rows(step)
        self.agreement.setdefault(name, Agreement()).add(got, want, live)
        found = difference(got, want, live)
        spread = float(want[live].std()) if live.any() else 1.0
        return self._add(name, found, found.largest, LOGITS_FLOAT32 * spread / 2)

    def tensor(self, name: str, got: Array, want: Array, live: NDArray[np.bool_]) -> bool:
        """Compare streams or state on `live` places."""
        found = difference(got, want, live)
        return self._add(name, found, found.relative, TENSOR_FLOAT32)

    def _add(self, name: str, found: Difference, error: float, bound: float) -> bool:
        self.found[name] = self.found[name].merged(found) if name in self.found else found
        self.bounds[name] = min(bound, self.bounds.get(name, bound))
        if found.problem or (error > bound and not self.official):
            text = found.problem or f"error {error:.2g} (bound {bound:.2g}), {found.where()}"
            self.failures.setdefault(name, text)
            return False
        return True

    def floor_step(
        self, record: Record, again: Mapping[str, Array], want: Mapping[str, Array]
    ) -> None:
        """The reference with reordered sums against itself."""
        for key, value in want.items():
            if key not in again:
                continue
            live = live_rows(record.step) if key == LOGITS else live_tokens(record.step)
            found, name = difference(again[key], value, live), _prefix(record) + key
            self.floors[name] = self.floors[name].merged(found) if name in self.floors else found

    def checks(self, explained: str = "") -> list[Check]:
        """`explained`: why a float32 run may be apart although nothing is wrong; empty where nothing explains it."""
        return [self._check(name, d, explained) for name, d in self.found.items()]

    @property
    def sanity(self) -> float:
        """The bound of official numerics: wide, and wider where reordering alone moves the run that far."""
        worst = max((f.relative for f in self.floors.values()), default=0.0)
        return max(SANITY_OFFICIAL, 2 * worst)

    def _check(self, name: str, d: Difference, explained: str) -> Check:
        absolute = name in self.agreement and not self.official
        floor, bound = self.floors.get(name), self.sanity if self.official else self.bounds[name]
        failure = self.failures.get(name, "")
        if not failure and self.official and d.relative > bound:
            failure = f"error {d.relative:.2g} (bound {bound:.2g}), {d.where()}"
        forgiven = bool(failure and explained and not d.problem)
        detail = f"{failure}; {explained}" if forgiven else failure
        if not detail and name in self.agreement:
            a = self.agreement[name]
            detail = f"most likely token equal in {a.same} of {a.total}"
        return Check(
            END_TO_END,
            f"{name} (absolute)" if absolute else name,
            FAILED if failure and not forgiven else PASSED,
            detail,
            error=d.largest if absolute else d.relative,
            row=d.row,
            bound=bound,
            floor=None if floor is None else (floor.largest if absolute else floor.relative),
        )


def check_step(
    run: EndToEnd, record: Record, result: Any, want: Mapping[str, Array], tally: EndToEndTally
) -> bool:
    """Compare one step of the artefact with the reference's: logits, streams, state.

    Args:
        run: the artefact after the step.
        record: the reference's step.
        result: what the artefact's runner returned.
        want: the reference's `logits` and `streams`, those that the graph has.
        tally: gathers.

    Returns:
        Whether everything is within bounds.
    """
    prefix, good = _prefix(record), True
    for name, value in want.items():
        if name == LOGITS:
            good &= tally.logits(prefix + name, result.logits, value, record.step)
        else:
            got = run.streams(result.streams)
            good &= tally.tensor(prefix + name, got, value, live_tokens(record.step))
    for name, value in record.values.items():
        if name.startswith("state.") and name.endswith("_out"):
            before = record.values[name.removesuffix("_out")]
            got = run.read_state(name.removesuffix("_out"))
            good &= _state(tally, prefix, name, got, value, before, record.step)
    return good


def _state(
    tally: EndToEndTally,
    prefix: str,
    name: str,
    got: Array,
    want: Array,
    before: Array,
    step: StepInputs,
) -> bool:
    """Rows that the reference wrote in this step; all layers under one name."""
    kind = name.removesuffix("_out").rsplit(".", 1)[-1]
    judged = np.asarray(~equal_bits(want, before).all(-1))
    judged[step.slots, -1] = False
    return tally.tensor(f"{prefix}state {kind}", got, want, judged)


def _prefix(record: Record) -> str:
    return "" if record.graph == MAIN else f"{record.graph} "
