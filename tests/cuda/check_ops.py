"""Every case of an op by its kernel on a device: values, repeatability, aliases, inputs left alone."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from ds4export.cuda.register import Caller
from ds4export.errors import RuntimeInputError
from ds4export.ops import ALL_OPS
from ds4export.ops._define import Case, OpDef
from ds4export.parity.reference import call_reference
from tests.cuda.cases import arguments_of
from tests.cuda.judge import Finding, judge
from tests.plugins.packed_cases import assert_as_native, is_packed, same_bits

MOST_WRONG = 5


@dataclass
class OpCheck:
    """The cases of one op."""

    op: str
    num_cases: int = 0
    worst_row: float = 0.0
    worst_relative: float = 0.0
    num_values: int = 0
    num_equal: float = 0.0
    flipped: int = 0
    seconds: float = 0.0
    wrong: list[str] = field(default_factory=list)

    def add(self, found: Finding) -> None:
        d = found.difference
        self.worst_row = max(self.worst_row, d.row)
        self.worst_relative = max(self.worst_relative, d.relative)
        self.num_values += d.count
        self.num_equal += d.identical * d.count
        self.flipped += found.flips.flipped


def check_op(caller: Caller, name: str, cases: Iterable[Case], device: str) -> OpCheck:
    """Run the cases; stops after a few that are wrong. A device that fails raises `ToolchainError`."""
    op, check, start = ALL_OPS[name], OpCheck(name), time.monotonic()
    for case in cases:
        check.num_cases += 1
        try:
            wrong = _check_case(caller, op, case, device, check)
        except RuntimeInputError as error:
            wrong = [error.found or error.what]
        check.wrong += [f"{name} {case.name}: {text}" for text in wrong]
        if len(check.wrong) >= MOST_WRONG:
            break
    check.seconds = time.monotonic() - start
    return check


def _check_case(caller: Caller, op: OpDef, case: Case, device: str, check: OpCheck) -> list[str]:
    inputs, attributes = arguments_of(op, case)
    call = call_reference(op, tuple(x.clone() for x in inputs), attributes)
    there = tuple(x.to(device, copy=True) for x in inputs)
    got = caller(op, there, attributes)
    caller.library.synchronise()
    found = judge(call, got)
    for finding in found:
        check.add(finding)
    wrong = [f"{f.output}: {f.failure}" for f in found if f.failure]
    wrong += [
        f"the kernel wrote into its input `{name}`"
        for name, before, after in zip(op.inputs, inputs, there, strict=True)
        if not same_bits(before, after.cpu())
    ]
    if is_packed(op, inputs):
        wrong += _unlike_native(caller, op, inputs, attributes, got)
    return wrong or _repeated(caller, op, there, attributes, got)


def _unlike_native(
    caller: Caller,
    op: OpDef,
    inputs: Sequence[Tensor],
    attributes: Sequence[Any],
    got: Sequence[Tensor],
) -> list[str]:
    """A packed result must be, bit by bit, the kernel's own on native rows, packed again."""
    device = got[0].device

    def native(rows: Sequence[Tensor]) -> list[Tensor]:
        return [t.cpu() for t in caller(op, [x.to(device, copy=True) for x in rows], attributes)]

    try:
        assert_as_native(op, inputs, attributes, [t.cpu() for t in got], native)
    except AssertionError as error:
        return [str(error)]
    return []


def _repeated(
    caller: Caller, op: OpDef, there: Sequence[Tensor], attributes: Sequence[Any], got: list[Tensor]
) -> list[str]:
    """Once more, with the state in its own buffers: the same bits."""
    again = replace(caller, in_place=True)(op, there, attributes)
    caller.library.synchronise()
    return [
        f"{name}: a second run, in place, gave other bits"
        for name, first, second in zip(op.outputs, got, again, strict=True)
        if not same_bits(first.cpu(), second.cpu())
    ]
