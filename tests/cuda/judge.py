"""The verdict on one op on a device: its outputs beside the reference's, of the same inputs.

The bounds are the op's own, those of the host checks. Choices are compared as sets; one may differ only where the
reference's own scores are as close as rounding can bring them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ds4export.ops._define import BOUNDARY
from ds4export.ops._packed import unpacked
from ds4export.parity import compare
from ds4export.parity.bounds import IDENTICAL, is_rounded
from ds4export.parity.choices import Flips
from ds4export.parity.metrics import Difference, difference
from ds4export.parity.reference import Call
from tests.plugins.packed_cases import is_packed, rope_dims_of, unpacked_outputs


@dataclass(frozen=True)
class Finding:
    """One output of one or more calls; `failure` is the first sentence about what is wrong."""

    op: str
    output: str
    difference: Difference = field(default_factory=Difference)
    flips: Flips = field(default_factory=Flips)
    failure: str = ""
    num_calls: int = 1

    def merged(self, other: Finding) -> Finding:
        return replace(
            self,
            difference=self.difference.merged(other.difference),
            flips=self.flips.merged(other.flips),
            failure=self.failure or other.failure,
            num_calls=self.num_calls + other.num_calls,
        )


def judge(call: Call, got: Sequence[Tensor], *, whole: bool = True) -> list[Finding]:
    """Every output of one call of the reference.

    Args:
        call: the reference's, on the CPU.
        got: the outputs under test, anywhere.
        whole: judge the error over the tensor too; where false, that is left to `run_failure`, over many calls.
    """
    found = [tensor.cpu() for tensor in got]
    assert len(found) == len(call.outputs), f"{call.op.name}: {len(found)} outputs"
    if is_packed(call.op, call.inputs):
        found = unpacked_outputs(call.op, call.inputs, found)
        call = _native(call)
    return [
        _judged(call, name, mine, want, found, whole)
        for name, mine, want in zip(call.op.outputs, found, call.outputs, strict=True)
    ]


def _native(call: Call) -> Call:
    """The call with packed rows as bf16."""
    given = dict(zip(call.op.inputs, call.inputs, strict=True))
    outputs = unpacked_outputs(call.op, call.inputs, call.outputs)
    for name, rows in call.op.cache.items():
        width = given[rows.like].shape[-1]
        if given[name].dtype == torch.int8:
            given[name] = unpacked(given[name], rows.kind, width, rope_dims_of(given))
    return replace(call, inputs=tuple(given.values()), outputs=tuple(outputs))


def run_failure(found: Finding, call: Call) -> str:
    """What all calls of a run together break: the error over everything, and the share of equal values."""
    d, op = found.difference, call.op
    if found.failure or d.problem or compare.CHOICES.get(op.name) == found.output:
        return found.failure
    if d.pooled > op.tolerance.official:
        return f"relative error {d.pooled:.2g} (bound {op.tolerance.official:g}), {d.where()}"
    exact = op.outputs[found.output] == BOUNDARY and is_rounded(op, found.output, official=True)
    if exact and d.identical < IDENTICAL:
        return f"{d.identical:.1%} of the values are identical (bound {IDENTICAL:.0%})"
    return ""


def _judged(
    call: Call, name: str, mine: Tensor, want: Tensor, got: Sequence[Tensor], whole: bool
) -> Finding:
    op = call.op.name
    if (mine.dtype, mine.shape) != (want.dtype, want.shape):
        found = f"{mine.dtype} {list(mine.shape)}, reference {want.dtype} {list(want.shape)}"
        return Finding(op, name, failure=found)
    if compare.CHOICES.get(op) == name:
        live = np.ones(want.shape[:2], bool)
        choice = compare._choice(call, name, mine.numpy(), want.numpy(), live, official=True)
        flips = choice.flips or Flips()
        return Finding(op, name, flips=flips, failure=compare._flip_failure(flips, any_flip=False))
    values = _numbers(mine)
    if op == "route_scores":
        values = compare._aligned(call, name, [t.numpy() for t in got], values)
    d = difference(values, _numbers(want))
    return Finding(op, name, d, failure=_failure(call, d, whole))


def _failure(call: Call, d: Difference, whole: bool) -> str:
    bound = call.op.tolerance
    if d.problem:
        return f"{d.problem} {list(d.index)}" if d.index else d.problem
    if d.row > bound.row:
        return f"relative error of a row {d.row:.2g} (bound {bound.row:g}), {d.where()}"
    if whole and d.relative > bound.official:
        return f"relative error {d.relative:.2g} (bound {bound.official:g}), {d.where()}"
    return ""


def _numbers(tensor: Tensor) -> NDArray[Any]:
    """bf16 as float32, which holds it exactly: numpy has no bfloat16 of its own."""
    exact = tensor.float() if tensor.dtype == torch.bfloat16 else tensor
    return np.asarray(exact.numpy())
