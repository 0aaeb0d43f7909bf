"""What every recorded step goes through: coverage, its half layers, its ops; and what came of it."""

from __future__ import annotations

from collections.abc import Sequence

from ds4export.parity.backends import Backend
from ds4export.parity.coverage import Coverage
from ds4export.parity.describe import PREFIX, place
from ds4export.parity.half_level import HalfTally, check_half
from ds4export.parity.op_level import NUM_FLOORS, OpLevel
from ds4export.parity.records import OrderProblem, Record
from ds4export.parity.results import COVERAGE, FAILED, OP, PASSED, SKIPPED, Check
from ds4export.parity.subject import Half, Subject
from ds4export.parity.tally import Tally


class Levels:
    """The tallies of one verification; `ops` are those that the verified part of the artefact uses."""

    def __init__(
        self,
        subject: Subject,
        backend: Backend,
        ops: frozenset[str],
        num_floors: int = NUM_FLOORS,
    ) -> None:
        self.subject, self.backend = subject, backend
        official = subject.manifest.official
        self.coverage = Coverage(subject.manifest.config, ops)
        self.ops = Tally(official)
        self.halves = HalfTally(official)
        self.op_level = OpLevel(subject, backend, self.ops, self.coverage, num_floors)
        self.problems: list[Check] = []
        self._order_line = ""

    def check(self, record: Record, halves: Sequence[Half]) -> None:
        """One recorded step, and the half layers in it."""
        for path, call in record.calls.items():
            self.coverage.call(path, call, record.step)
        self.op_level.check(record)
        for half in halves:
            check_half(self.subject, self.backend, record, half, self.halves)

    def order(self, part: str, problem: OrderProblem) -> None:
        """A graph that does not hold the reference's calls, once per part."""
        if all(c.name != part for c in self.problems):
            self.problems.append(Check(OP, part, FAILED, problem.sentence))
            where = place(problem.node.path) if problem.node is not None else part
            self._order_line = self._order_line or f"{PREFIX}{where}, {problem.sentence}"

    def first(self) -> str:
        """The line of the first op that diverges."""
        return self._order_line or self.ops.first()

    def checks(self) -> list[Check]:
        """Coverage first, then problems of order, half layers, ops."""
        checks = []
        for covered in self.coverage.result():
            status = FAILED if covered.failed else SKIPPED if covered.not_applicable else PASSED
            checks.append(Check(COVERAGE, covered.item.name, status, covered.sentence()))
        return [*checks, *self.problems, *self.halves.checks(), *self.ops.checks()]
