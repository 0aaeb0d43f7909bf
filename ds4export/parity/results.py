"""What a verification found: checks, coverage, the first divergence, the verdict. Frozen, and as JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"
COVERAGE, END_TO_END, HALF, OP, PROBE, VECTORS = (
    "coverage",
    "end to end",
    "half layer",
    "op",
    "probe",
    "vectors",
)
LEVELS = (COVERAGE, END_TO_END, HALF, OP, PROBE, VECTORS)


@dataclass(frozen=True)
class Check:
    """One verdict. `error`, `bound` and `floor` are relative unless the name says otherwise; None: no such number.

    `floor` is the noise floor: the same error between the reference and itself with its sums in another order.
    """

    level: str
    name: str
    status: str
    detail: str = ""
    op: str = ""
    error: float | None = None
    bound: float | None = None
    floor: float | None = None
    row: float | None = None
    identical: float | None = None
    flips: int | None = None
    choices: int | None = None
    margin: float | None = None
    calls: int = 0

    @property
    def failed(self) -> bool:
        return self.status == FAILED

    def to_json(self) -> dict[str, Any]:
        """Plain data; infinite errors as text, since JSON has none."""
        return {k: _number(v) for k, v in asdict(self).items() if v is not None}


@dataclass(frozen=True)
class Report:
    """Everything a verification says."""

    artefact: str
    artefact_hash: str
    numerics: str
    backend: str
    num_steps: int
    num_tokens: int
    seconds: float
    first_divergence: str  # empty where nothing diverges
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        return not any(c.failed for c in self.checks)

    def of(self, level: str) -> Sequence[Check]:
        return [c for c in self.checks if c.level == level]

    def failures(self) -> Sequence[Check]:
        return [c for c in self.checks if c.failed]

    def to_json(self) -> dict[str, Any]:
        """The whole report, its verdict first."""
        plain = {k: v for k, v in asdict(self).items() if k != "checks"}
        verdict = {"verdict": PASSED if self.passed else FAILED}
        return verdict | plain | {"checks": [c.to_json() for c in self.checks]}


def _number(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
