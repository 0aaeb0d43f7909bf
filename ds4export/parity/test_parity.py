"""The checks of `ds4export verify` as tests, for the continuous integration of one's own artefact.

`pytest --pyargs ds4export.parity --artefact PATH --backend NAME [--vectors DIR] [--checkpoint DIR]`
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from ds4export.parity.results import COVERAGE, END_TO_END, HALF, SKIPPED, VECTORS, Check, Report


def _assert_passed(checks: Sequence[Check], report: Report) -> None:
    assert checks, "nothing was checked"
    if all(c.status == SKIPPED for c in checks):
        pytest.skip(checks[0].detail)
    failures = [f"{c.level}, {c.name}: {c.detail}" for c in checks if c.failed]
    if failures:
        pytest.fail("\n".join((*failures, report.first_divergence)), pytrace=False)


def test_coverage(coverage_item: str, report: Report) -> None:
    """The run has seen this, or the artefact cannot have it."""
    _assert_passed([c for c in report.of(COVERAGE) if c.name == coverage_item], report)


def test_end_to_end(report: Report) -> None:
    """The artefact by itself beside the reference by itself."""
    _assert_passed(report.of(END_TO_END), report)


def test_half_layer(half_path: str, report: Report) -> None:
    """A half layer with the reference's inputs."""
    _assert_passed([c for c in report.of(HALF) if c.name == half_path], report)


def test_op(op_path: str, report: Report) -> None:
    """One op with the reference's inputs, and its probes."""
    names = (f"{op_path}:", f"{op_path} (")
    _assert_passed([c for c in report.checks if c.name.startswith(names)], report)


def test_vectors(report: Report) -> None:
    """Recorded outputs of the released code."""
    if not report.of(VECTORS):
        pytest.skip("needs --vectors DIR")
    _assert_passed(report.of(VECTORS), report)


def test_verdict(report: Report) -> None:
    """Everything together: nothing failed that no other test looks at."""
    _assert_passed(report.checks, report)
