"""Per node, over all steps: the worst of what was found, beside bound and noise floor; and the first failure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from ds4export.ops import ALL_OPS
from ds4export.ops._define import OpDef
from ds4export.parity.bounds import PROBE_SLACK, is_rounded, run_failure, tensor_bound
from ds4export.parity.compare import OutputFinding
from ds4export.parity.describe import first_line
from ds4export.parity.metrics import Difference
from ds4export.parity.results import FAILED, OP, PASSED, PROBE, Check
from ds4export.parity.subject import OpNode
from ds4export.runtime.runner import StepInputs

Key = tuple[str, str, str]  # level, node path (with the probe's name), output


@dataclass
class Entry:
    """One output of one node."""

    node: OpNode
    finding: OutputFinding
    step: StepInputs  # of the worst finding
    floor: OutputFinding | None = None
    calls: int = 1
    line: str = ""  # the first failure of a single call
    slack: float = 1.0


@dataclass
class Tally:
    """Findings merged by node and output, in the order of the graphs."""

    official: bool
    entries: dict[Key, Entry] = field(default_factory=dict)

    def add(
        self,
        node: OpNode,
        step: StepInputs,
        findings: Iterable[OutputFinding],
        floors: Sequence[OutputFinding] = (),
        *,
        level: str = OP,
        label: str = "",
    ) -> None:
        """Merge the findings of one call; `label` names a probe."""
        by_name = {f.name: f for f in floors}
        for finding in findings:
            key, floor = (level, node.path + label, finding.name), by_name.get(finding.name)
            entry = self.entries.get(key)
            if entry is None:
                slack = PROBE_SLACK if level == PROBE else 1.0
                entry = self.entries[key] = Entry(node, finding, step, floor, slack=slack)
            else:
                if finding.difference.row > entry.finding.difference.row:
                    entry.step = step
                entry.finding = entry.finding.merged(finding)
                entry.floor = entry.floor.merged(floor) if entry.floor and floor else entry.floor
                entry.calls += 1
            if finding.failure and not entry.line:
                entry.line = first_line(node, finding, step)

    def checks(self) -> list[Check]:
        return [self._check(key, entry) for key, entry in self.entries.items()]

    def first(self) -> str:
        """The line of the first node, in the order of the graphs, that fails; real inputs before probes."""
        failing = [(k, e) for k, e in self.entries.items() if self._failure(e)]
        failing.sort(key=lambda pair: pair[0][0] == PROBE)
        if not failing:
            return ""
        entry = failing[0][1]
        found = replace(entry.finding, failure=self._failure(entry))
        return entry.line or first_line(entry.node, found, entry.step)

    def _failure(self, entry: Entry) -> str:
        found, op = entry.finding, ALL_OPS[entry.node.op]
        if found.failure or found.flips is not None:
            return found.failure
        return run_failure(found.difference, op, found.name, self.official, entry.slack)

    def _check(self, key: Key, entry: Entry) -> Check:
        level, path, output = key
        failure, finding, floor = self._failure(entry), entry.finding, entry.floor
        op = ALL_OPS[entry.node.op]
        check = Check(
            level,
            f"{path}:{output}",
            FAILED if failure else PASSED,
            failure,
            op=entry.node.op,
            calls=entry.calls,
        )
        if finding.flips is not None:
            flips = finding.flips
            return replace(
                check,
                flips=flips.flipped,
                choices=flips.total,
                margin=flips.margin,
                floor=float(floor.flips.flipped) if floor and floor.flips else None,
            )
        d = finding.difference
        return replace(
            check,
            error=self._error(d, op, output),
            row=d.row,
            identical=d.identical,
            bound=entry.slack * tensor_bound(op, output, self.official),
            floor=self._error(floor.difference, op, output) if floor else None,
        )

    def _error(self, d: Difference, op: OpDef, output: str) -> float:
        return d.pooled if is_rounded(op, output, self.official) else d.relative
