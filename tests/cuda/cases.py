"""The cases of every op, read from the tables of tests/ without what only the host checks import."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from functools import cache
from typing import Any

from ds4export.ops import ALL_OPS
from ds4export.ops._cases import Gen
from ds4export.ops._define import Case, OpDef
from ds4export.ptxhost.toolchain import REPOSITORY
from tests.kit.op_cases import MORE_CASES

LEAST_CASES = 3


@cache
def _tables() -> tuple[dict[str, Sequence[Case]], ...]:
    """Every table `..._CASES` of a module tests/plugins/..._cases.py."""
    paths = sorted((REPOSITORY / "tests/plugins").glob("*_cases.py"))
    modules = [importlib.import_module(f"tests.plugins.{path.stem}") for path in paths]
    return tuple(
        vars(module)[name]
        for module in modules
        for name in sorted(vars(module))
        if name.endswith("_CASES")
    )


def cases_of(op: str) -> tuple[Case, ...]:
    """The op's own cases, more borders of them, and those of its kernel."""
    return (
        *ALL_OPS[op].cases,
        *MORE_CASES.get(op, ()),
        *(case for table in _tables() for case in table.get(op, ())),
    )


def arguments_of(op: OpDef, case: Case) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Inputs and attributes of a case, official numerics."""
    made = case.make(Gen(case.name, official=True))
    return tuple(made[: len(op.inputs)]), tuple(made[len(op.inputs) :])


def small(op: str, cases: Sequence[Case], most_elements: int, most_cases: int) -> tuple[Case, ...]:
    """The first few cases that a sanitizer runs through in seconds; the smallest ones where there are no such."""
    sizes = [sum(t.numel() for t in arguments_of(ALL_OPS[op], case)[0]) for case in cases]
    fitting = [case for case, size in zip(cases, sizes, strict=True) if size <= most_elements]
    by_size = [cases[i] for i in sorted(range(len(cases)), key=sizes.__getitem__)]
    others = [case for case in by_size if case not in fitting]
    return tuple([*fitting, *others[: max(0, LEAST_CASES - len(fitting))]][:most_cases])
