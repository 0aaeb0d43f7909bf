"""compress_csa: the main compressor of CSA layers (ratio 4, overlapping blocks).

Axes: x [B, T, D], wkv and wgate bf16 [2d, D], ape float32 [4, 2d], norm bf16 [d], pending
[S, R + 1, 4d] float32 with R >= 8,
cache [S, C + 1, d] -> pending_out, cache_out. Official: entries take the A8(64) round trip on all but the roped dims.
The maths stands in `_compress`. Specification sections 5, 8 and 11 row 8.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ds4export.ops._body import T
from ds4export.ops._body_numerics import rounded_nope as body_rounded_nope
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
from ds4export.ops._define import CacheRows, OpDef, Tolerance
from ds4export.ops._numerics import rounded_nope
from ds4export.state import KV


def reference(x: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    rope_dims = 2 * len(args[4])
    return compress(x, *args, overlap=True, finish=lambda e: rounded_nope(e, rope_dims, x))


def body(x: T, *args: T, eps: float) -> tuple[T, T]:
    freqs = args[4]
    return body_compress(
        x, *args, eps=eps, overlap=True, finish=lambda e: body_rounded_nope(e, freqs)
    )


OP = OpDef(
    name="compress_csa",
    schema=SCHEMA,
    inputs=INPUTS,
    outputs=OUTPUTS,
    aliases=ALIASES,
    cache={"cache": CacheRows(KV, "norm")},
    reference=reference,
    fake=fake,
    body=body,
    tolerance=Tolerance(
        5e-6,
        3e-3,
        3e-2,
        "a bf16 rounding apart may move a value to the next e4m3 code, an eighth of it",
    ),
    cases=cases(4, 2),
)
