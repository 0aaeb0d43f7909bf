"""index_query: the indexer's queries.

    q = x viewed [h, d];  rope on the last r dims;  official: Hadamard·d^-0.5, bf16, FP4 round trip

Axes: x [B, T, h·d], positions INT64 [B], freqs [r/2] -> [B, T, h, d]. The Hadamard transform cancels in q·k, so
float32 numerics leaves it out of queries and keys alike. Specification sections 6 and 11 row 9.
"""

from __future__ import annotations

from torch import Tensor

from ds4export.ops._body import T
from ds4export.ops._body_numerics import hadamard_fp4 as body_hadamard_fp4
from ds4export.ops._body_numerics import load, query_positions, store
from ds4export.ops._body_numerics import rope as body_rope
from ds4export.ops._body_numerics import rounded as body_rounded
from ds4export.ops._cases import Gen
from ds4export.ops._define import BOUNDARY, F32, INTS, Case, OpDef, Tolerance, new
from ds4export.ops._numerics import hadamard_fp4, rounded, stored
from ds4export.ops.query_heads import rotated


def reference(x: Tensor, positions: Tensor, freqs: Tensor, heads: int, head_dim: int) -> Tensor:
    q = rotated(x.float().unflatten(-1, (heads, head_dim)), positions, freqs)
    return stored(hadamard_fp4(rounded(q, x), x), x)


def fake(x: Tensor, positions: Tensor, freqs: Tensor, heads: int, head_dim: int) -> Tensor:
    return new(x, x.shape[0], x.shape[1], heads, head_dim)


def body(x: T, positions: T, freqs: T, *, heads: int, head_dim: int) -> T:
    q = load(x).reshape(0, 0, heads, head_dim)
    q = body_rounded(body_rope(q, query_positions(x, positions), freqs))
    return store(body_hadamard_fp4(q, head_dim))


def _case(batch: int, tokens: int, heads: int, width: int, rope_dims: int, start: int) -> Case:
    def make(g: Gen) -> tuple[object, ...]:
        positions = g.integers((batch,), start, start + 50)
        return g.x(batch, tokens, heads * width), positions, g.freqs(rope_dims), heads, width

    return Case(f"{batch}x{tokens}x{heads}x{width}-rope{rope_dims}-at{start}", make)


OP = OpDef(
    name="index_query",
    schema="(Tensor x, Tensor positions, Tensor freqs, int heads, int head_dim) -> Tensor",
    inputs={"x": BOUNDARY, "positions": INTS, "freqs": F32},
    outputs={"q": BOUNDARY},
    reference=reference,
    fake=fake,
    body=body,
    tolerance=Tolerance(
        2e-6,
        1e-2,
        0.3,
        "a bf16 rounding apart may move a value to the next FP4 code, up to a third of it",
    ),
    cases=(_case(1, 1, 4, 128, 64, 0), _case(2, 5, 3, 32, 16, 7)),
)
