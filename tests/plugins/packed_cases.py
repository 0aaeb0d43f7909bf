"""Packed variants of cases: cache rows as bytes, rows that must not be read as bytes that no row has.

A packed result must be the native one: outputs equal bit by bit, and written rows those that packing the native output
gives (`assert_as_native`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ds4export.ops import ALL_OPS
from ds4export.ops._cases import Gen
from ds4export.ops._define import Case, OpDef
from ds4export.ops._numerics import rounded_nope, stored
from ds4export.ops._packed import in_either_layout, packed, unpacked
from ds4export.state import KEY, KEY_SCALE_BLOCK, KV, KV_SCALE_BLOCK
from tests.plugins.attention_cases import ATTENTION_CASES

Outputs = Sequence[Tensor]
PAD = 99  # where a row has a pad byte; as a scale it is 2^-28
UNWRITTEN = -1  # NaN as a code, as bf16 and as a scale


def rope_dims_of(inputs: dict[str, Tensor]) -> int:
    """How many dims the op's freqs turn."""
    return 2 * inputs["freqs"].shape[-1] if "freqs" in inputs else 0


def packed_case(op: OpDef, case: Case) -> Case:
    """`case` with its cache rows packed; every block of a row has a scale of its own."""

    def make(g: Gen) -> tuple[Any, ...]:
        arguments = case.make(g)
        inputs = dict(zip(op.inputs, arguments, strict=False))
        rope_dims = rope_dims_of(inputs)
        for name, rows in op.cache.items():
            inputs[name] = _packed(g, inputs[name], rows.kind, rope_dims)
        if "kv" in inputs:
            inputs["kv"] = _as_written(g, inputs["kv"], KV, rope_dims)
        return *inputs.values(), *arguments[len(inputs) :]

    return Case(f"packed, {case.name}", make)


def _packed(g: Gen, rows: Tensor, kind: str, rope_dims: int) -> Tensor:
    made = packed(_as_written(g, rows, kind, rope_dims).nan_to_num(0), kind, rope_dims)
    width = rows.shape[-1]
    if kind == KV:
        made[..., width + rope_dims + -(-(width - rope_dims) // KV_SCALE_BLOCK) :] = PAD
    made[torch.isnan(rows).any(-1)] = UNWRITTEN
    return made


def _as_written(g: Gen, rows: Tensor, kind: str, rope_dims: int) -> Tensor:
    """Rows that packing loses nothing of, NaN where `rows` have it; blocks are scaled by powers of two at random."""
    block, span = (KEY_SCALE_BLOCK, 1) if kind == KEY else (KV_SCALE_BLOCK, 2)
    width = rows.shape[-1]
    power = g.integers((*rows.shape[:-1], -(-width // block)), -span, span + 1)
    scaled = rows.float() * torch.exp2(power.float()).repeat_interleave(block, -1)[..., :width]
    if kind == KEY:
        return stored(scaled, rows)  # codes times a power of two as they are
    return torch.where(torch.isnan(rows), rows, stored(_rounded(scaled, rope_dims, rows), rows))


def _rounded(rows: Tensor, rope_dims: int, like: Tensor) -> Tensor:
    return rounded_nope(rows.nan_to_num(0).to(like.dtype).float(), rope_dims, like)


def is_packed(op: OpDef, inputs: Sequence[Tensor]) -> bool:
    """Whether a call of the op has packed rows."""
    given = dict(zip(op.inputs, inputs, strict=True))
    return any(given[name].dtype == torch.int8 for name in op.cache)


def unpacked_outputs(op: OpDef, inputs: Sequence[Tensor], outputs: Outputs) -> list[Tensor]:
    """Outputs with packed rows as bf16, to be compared within the bounds of the op."""
    given = dict(zip(op.inputs, inputs, strict=True))
    made = []
    for name, output in zip(op.outputs, outputs, strict=True):
        rows = op.cache.get((op.aliases or {}).get(name, ""))
        if rows and output.dtype == torch.int8:
            width = given[rows.like].shape[-1]
            made.append(unpacked(output, rows.kind, width, rope_dims_of(given)))
        else:
            made.append(output)
    return made


def assert_as_native(
    op: OpDef,
    inputs: Sequence[Tensor],
    attributes: Sequence[Any],
    got: Outputs,
    run: Callable[[list[Tensor]], Outputs],
) -> None:
    """Fail unless `got` is, bit by bit, what `run` (the op on native rows) makes of the unpacked rows, packed again."""

    def native(*arguments: Any) -> Any:
        made = tuple(run(list(arguments[: len(op.inputs)])))
        return made if len(made) > 1 else made[0]

    made = in_either_layout(replace(op, reference=native))(*inputs, *attributes)
    want = made if isinstance(made, tuple) else (made,)
    for name, g, w in zip(op.outputs, got, want, strict=True):
        assert same_bits(g, w), f"{op.name}: `{name}` differs between packed and native rows"


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Equality in which NaN equals the same NaN and 0 is not −0; of one type and shape."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return torch.equal(_bits(a), _bits(b))


def _bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


PACKED_CASES: dict[str, Sequence[Case]] = {
    name: tuple(packed_case(ALL_OPS[name], case) for case in cases)
    for name, cases in ATTENTION_CASES.items()
}
