"""compress_index: the indexer's compressor of CSA layers (ratio 4, overlapping blocks).

Axes: x [B, T, D], wkv and wgate bf16 [2d, D], ape float32 [4, 2d], norm bf16 [d], pending
[S, R + 1, 4d] float32 with R >= 8,
cache [S, C + 1, d] -> pending_out, cache_out. Official: keys go through Hadamard·d^-0.5, bf16 and the FP4 round trip.
The maths stands in `_compress`. Specification sections 5, 6, 8 and 11 row 8.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ds4export.ops._body import T
from ds4export.ops._body_numerics import hadamard_fp4 as body_hadamard_fp4
from ds4export.ops._compress import (
    ALIASES,
    INPUTS,
    OUTPUTS,
    SCHEMA,
    body_compress,
    cases,
    compress,
    fake,
)
from ds4export.ops._define import CacheRows, Case, OpDef, Tolerance
from ds4export.ops._numerics import hadamard_fp4
from ds4export.state import KEY


def reference(x: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    *others, _head_dim = args
    return compress(x, *others, overlap=True, finish=lambda e: hadamard_fp4(e, x))


def body(x: T, *args: T, eps: float, head_dim: int) -> tuple[T, T]:
    return body_compress(
        x, *args, eps=eps, overlap=True, finish=lambda e: body_hadamard_fp4(e, head_dim)
    )


def _with_head_dim(case: Case) -> Case:
    return Case(case.name, lambda g: (*case.make(g), 128))


OP = OpDef(
    name="compress_index",
    schema=SCHEMA.replace("float eps", "float eps, int head_dim"),
    inputs=INPUTS,
    outputs=OUTPUTS,
    aliases=ALIASES,
    cache={"cache": CacheRows(KEY, "norm")},
    reference=reference,
    fake=fake,
    body=body,
    tolerance=Tolerance(
        5e-6,
        2e-2,
        0.3,
        "a bf16 rounding apart may move a value to the next FP4 code, up to a third of it",
    ),
    cases=tuple(_with_head_dim(c) for c in cases(4, 2)),
)
