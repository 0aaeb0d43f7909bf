"""A report for people: tables, then what failed, then the first divergence. Also JUnit for continuous integration."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from xml.etree import ElementTree

from ds4export.parity.results import (
    COVERAGE,
    END_TO_END,
    FAILED,
    HALF,
    LEVELS,
    OP,
    PROBE,
    SKIPPED,
    VECTORS,
    Check,
    Report,
)
from ds4export.report import print_line, print_table

Row = Sequence[str | int | float | None]
MAX_FAILURES = 12


def show(report: Report) -> None:
    """Print the report on stdout."""
    for level in (END_TO_END, HALF):
        checks = report.of(level)
        if checks:
            heads = (level, "error", "bound", "noise floor", "verdict")
            print_table("", heads, [_row(c) for c in checks])
            print_line()
    for title, groups in (("op by op", _by_op(report)), ("vectors", _by_kind(report))):
        if groups:
            columns = (
                title,
                "calls",
                "error",
                "bound",
                "noise floor",
                "identical",
                "flips",
                "verdict",
            )
            print_table("", columns, [_group_row(*item) for item in groups.items()])
            print_line()
    rows = [(c.name, "FAILED: " + c.detail if c.failed else c.detail) for c in report.of(COVERAGE)]
    print_table("", ("coverage", "seen"), rows)
    for line in _failure_lines(report):
        print_line(line)


def _row(check: Check) -> Row:
    detail = check.detail or check.status
    return (check.name, check.error, check.bound, check.floor, _verdict([check], detail))


def _verdict(checks: Sequence[Check], detail: str = "") -> str:
    failed = sum(c.failed for c in checks)
    if not failed:
        return detail or "passed"
    return f"FAILED: {detail}" if len(checks) == 1 else f"FAILED in {failed} of {len(checks)}"


def _by_op(report: Report) -> dict[str, list[Check]]:
    """Checks of single ops by op and output."""
    groups: dict[str, list[Check]] = {}
    for check in (*report.of(OP), *report.of(PROBE)):
        label = " (probes)" if check.level == PROBE else ""
        output = check.name.rpartition(":")[2]
        groups.setdefault(f"{check.op or check.name} {output}{label}", []).append(check)
    return groups


def _by_kind(report: Report) -> dict[str, list[Check]]:
    """Checks against recorded vectors by phase and kind, all layers together."""
    groups: dict[str, list[Check]] = {}
    for check in report.of(VECTORS):
        phase, *rest = check.name.split(".")
        if rest[0] in ("layers", "mtp") and rest[1].isdecimal():
            rest = rest[2:]
        groups.setdefault(f"{phase} {'.'.join(rest)}", []).append(check)
    return groups


def _group_row(name: str, checks: Sequence[Check]) -> Row:
    """The worst of a group."""
    choices = [c for c in checks if c.flips is not None]
    flips = f"{sum(c.flips or 0 for c in choices)} of {sum(c.choices or 0 for c in choices):,}"
    return (
        name,
        sum(c.calls for c in checks) or len(checks),
        _most([c.error for c in checks]),
        _most([c.bound for c in checks]),
        _most([c.floor for c in checks]),
        _share([c.identical for c in checks]),
        flips if choices else None,
        _verdict(checks, "passed"),
    )


def _most(values: Sequence[float | None]) -> float | None:
    return max((v for v in values if v is not None), default=None)


def _share(values: Sequence[float | None]) -> str | None:
    known = [v for v in values if v is not None]
    return f"{min(known):.2%}" if known else None


def _failure_lines(report: Report) -> Iterator[str]:
    failures = report.failures()
    if failures:
        yield ""
    for check in failures[:MAX_FAILURES]:
        yield f"failed: {check.level}, {check.name}: {check.detail}"
    if len(failures) > MAX_FAILURES:
        yield f"failed: {len(failures) - MAX_FAILURES} more; --json has all"
    if report.first_divergence:
        yield report.first_divergence


def junit(report: Report) -> str:
    """The report as JUnit XML: one test suite per level."""
    root = ElementTree.Element("testsuites", name="ds4export verify")
    for level in LEVELS:
        checks = report.of(level)
        if not checks:
            continue
        counts = {
            "tests": str(len(checks)),
            "failures": str(sum(c.failed for c in checks)),
            "skipped": str(sum(c.status == SKIPPED for c in checks)),
        }
        suite = ElementTree.SubElement(root, "testsuite", counts, name=level)
        for check in checks:
            case = ElementTree.SubElement(suite, "testcase", classname=level, name=check.name)
            if check.status == FAILED:
                ElementTree.SubElement(case, "failure", message=check.detail)
            elif check.status == SKIPPED:
                ElementTree.SubElement(case, "skipped", message=check.detail)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"
