"""Layer by layer: every half layer by itself, as the function it is in the artefact, with the reference's inputs."""

from __future__ import annotations

from dataclasses import dataclass, field

from ds4export.errors import ParityError
from ds4export.parity.backends import Backend
from ds4export.parity.compare import live_tokens, state_finding
from ds4export.parity.metrics import Difference, difference
from ds4export.parity.records import Record, inputs_of
from ds4export.parity.results import FAILED, HALF, PASSED, Check
from ds4export.parity.subject import Half, Subject

# Bounds of a half layer, relative over a tensor. float32: ten ops in a row, each measured at 5e-7. official: a flipped
# rounding of one op moves the input of the next, so an e4m3 code or a choice may flip inside; a flipped choice moves a
# row by up to 0.23, and one row in ten may have one (specification section 16). So all calls of a run are held to
# BOUND_OFFICIAL together, and one call, which may be a single row, to the most that a flipped choice does. Details are
# judged op by op.
BOUND_FLOAT32 = 5e-6
BOUND_OFFICIAL = 5e-2
CALL_BOUND_OFFICIAL = 0.25


@dataclass
class HalfTally:
    """Findings of half layers, merged over steps."""

    official: bool
    found: dict[str, Difference] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)

    @property
    def bound(self) -> float:
        return BOUND_OFFICIAL if self.official else BOUND_FLOAT32

    def add(self, path: str, found: Difference, failure: str = "") -> None:
        """Merge one comparison; the first failure of a half is kept."""
        self.found[path] = self.found[path].merged(found) if path in self.found else found
        self.calls[path] = self.calls.get(path, 0) + 1
        if not failure and found.problem:
            failure = found.problem
        call_bound = CALL_BOUND_OFFICIAL if self.official else BOUND_FLOAT32
        if not failure and found.relative > call_bound:
            failure = f"relative error {found.relative:.2g} (bound {call_bound:g}), {found.where()}"
        if failure:
            self.failures.setdefault(path, failure)

    def failure(self, path: str) -> str:
        """Why a half fails, one call by itself or all of them together; empty if it does not."""
        d = self.found[path]
        if path in self.failures or d.problem or d.pooled <= self.bound:
            return self.failures.get(path, "")
        return f"relative error {d.pooled:.2g} over all calls (bound {self.bound:g}), worst {d.where()}"

    def checks(self) -> list[Check]:
        return [
            Check(
                HALF,
                path,
                FAILED if self.failure(path) else PASSED,
                self.failure(path),
                error=d.pooled if self.official else d.relative,
                row=d.row,
                identical=d.identical,
                bound=self.bound,
                calls=self.calls[path],
            )
            for path, d in self.found.items()
        ]


def check_half(
    subject: Subject, backend: Backend, record: Record, half: Half, tally: HalfTally
) -> None:
    """One half against the recorded step: its streams on live tokens, its state on written rows."""
    try:
        outputs = backend.run_half(half, inputs_of(subject, record, half))
    except ParityError as cause:
        tally.add(half.path, Difference(problem=f"does not run: {cause.found or cause.what}"))
        return
    for name, got in zip(half.outputs, outputs, strict=True):
        want = record.values[name]
        if name.startswith("state."):
            before = record.values[name.removesuffix("_out")]
            found = state_finding(name, got, want, before, record.step)
            tally.add(half.path, found.difference, found.failure)
        else:
            tally.add(half.path, difference(got, want, live_tokens(record.step)))
