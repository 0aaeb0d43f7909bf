"""Planted faults: each makes verification fail and is named as the first divergence. The table is docs/faults.md."""

from __future__ import annotations

from pathlib import Path

import pytest

from ds4export.ops import ALL_OPS
from ds4export.ops._body import BodyOptions
from ds4export.parity.results import COVERAGE, Report
from tests.parity.fault import FLOAT32, OFFICIAL, Fault
from tests.parity.faults import FAULTS, Bench
from tests.parity.mutate import Edit, edited, mutated_op

PAGE = Path(__file__).parent.parent.parent / "docs" / "faults.md"
QUICK = [f for f in FAULTS if f.quick]
# Graphs of a quick run: four steps of the scenario, main and MTP, late sequences included.
QUICK_GRAPHS = 8


def assert_caught(fault: Fault, report: Report) -> None:
    failed = [c for c in report.failures() if c.level != COVERAGE]
    assert failed, f"nothing caught: {fault.name}"
    assert fault.expect in report.first_divergence, report.first_divergence


@pytest.mark.parametrize("fault", QUICK, ids=lambda f: f.name)
def test_a_fault_is_caught_and_named(bench: Bench, fault: Fault) -> None:
    assert_caught(fault, bench.verify(fault, QUICK_GRAPHS))


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f.name)
def test_every_fault_is_caught_and_named(bench: Bench, fault: Fault) -> None:
    assert_caught(fault, bench.verify(fault))


@pytest.mark.parametrize("numerics", [FLOAT32, OFFICIAL])
def test_without_a_fault_nothing_fails(bench: Bench, numerics: str) -> None:
    fault = next(f for f in FAULTS if f.quick and f.numerics == numerics)
    report = bench.report(fault, bench.sound(fault), QUICK_GRAPHS)
    assert [c for c in report.failures() if c.level != COVERAGE] == []
    assert report.first_divergence == ""


def test_faults_are_many_and_told_apart() -> None:
    assert len(FAULTS) >= 35
    assert len({f.name for f in FAULTS}) == len(FAULTS)
    assert {f.numerics for f in FAULTS} == {FLOAT32, OFFICIAL}


def test_the_table_lists_every_fault() -> None:
    lines = PAGE.read_text("utf-8").splitlines()
    rows = [
        tuple(c.strip() for c in line.split("|")[1:3]) for line in lines if line.startswith("| ")
    ]
    listed = [r for r in rows if r[0] not in ("fault", "---")]
    expected = [(f.name, f.where) for f in FAULTS]
    assert sorted(listed) == sorted(expected), "run scripts/make_faults_table.py"


def test_the_table_has_no_fault_that_nothing_caught() -> None:
    assert f"{len(FAULTS)} faults, {len(FAULTS)} caught." in PAGE.read_text("utf-8")


def test_an_edited_body_leaves_the_real_op_alone() -> None:
    before = ALL_OPS["hc_post"].reference
    op = mutated_op("hc_post", [Edit("hc_post", "comb.transpose(0, 1, 3, 2)", "comb")])
    mutated, real = (o.function({}, BodyOptions(official=False)) for o in (op, ALL_OPS["hc_post"]))
    assert "Transpose" not in [n.op_type for n in mutated]
    assert "Transpose" in [n.op_type for n in real]
    assert ALL_OPS["hc_post"].reference is before
    from ds4export.ops import hc_post

    assert hc_post.OP.body.__module__ == "ds4export.ops.hc_post"
    assert hc_post.reference is before


def test_an_edit_that_fits_nowhere_is_an_error() -> None:
    with pytest.raises(AssertionError, match="stands 0 times"):
        edited("a = 1\n", Edit("x", "b = 2", "b = 3"))
    with pytest.raises(AssertionError, match="stands 2 times"):
        edited("a = 1\na = 1\n", Edit("x", "a = 1", "a = 2"))


def test_layout_does_not_matter_to_an_edit() -> None:
    source = "y = f(\n    a,\n    b,\n)\n"
    assert edited(source, Edit("x", "f(a, b,)", "g(b)")) == "y = g(b)\n"
