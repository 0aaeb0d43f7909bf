"""What one launch of a kernel moves and computes, for given shapes.

Owns the record and the counts that all ops share. Bytes that any implementation must move (compulsory) are apart from
those that the kernel as written moves besides.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from math import exp, lgamma, log, log1p

BF16, F32, INT64 = 2, 4, 8


class Unit(Enum):
    """The fastest unit whose operands hold the values exactly, which the bound assumes."""

    VECTOR = "fp32"
    BF16 = "bf16"  # tensor cores
    FP8 = "fp8"  # tensor cores: e4m3 activations on e4m3 or e2m1 weights; see Kernel.codes


@dataclass(frozen=True)
class Kernel:
    """One launch. Bytes and operations of the whole grid; 2 operations a multiply-add."""

    name: str
    blocks: float  # that have work
    weights: float = 0  # compulsory bytes of the checkpoint
    state: float = 0  # compulsory bytes of the sequences' state
    activations: float = 0  # compulsory bytes of the op's other inputs and outputs
    flops: float = 0
    unit: Unit = Unit.VECTOR
    codes: bool = (
        False  # multiplies e4m3 codes where mma.sync does; otherwise tensor products are bf16
    )
    executed: float = 0  # operations with padding; never less than flops
    loaded: float = 0  # bytes that all blocks read or write, most of them in the L2 cache
    again: tuple[tuple[float, float], ...] = ()  # (bytes moved besides, footprint they come from)

    @property
    def compulsory(self) -> float:
        """Bytes that must come from or go to memory."""
        return self.weights + self.state + self.activations


def ceil_div(a: float, b: float) -> int:
    """Whole parts of size b that hold a."""
    return int(-(-a // b))


def expected_hit(num_experts: int, per_token: int, tokens: int) -> float:
    """Experts that at least one of `tokens` tokens takes, each taking `per_token` of them evenly at random."""
    return num_experts * (1 - (1 - per_token / num_experts) ** tokens)


def expected_tiles(num_experts: int, per_token: int, tokens: int, per_tile: int) -> float:
    """Tiles of up to `per_tile` pairs that the experts' lists are cut into, under the same assumption."""
    p = per_token / num_experts
    pairs = range(1, tokens + 1)
    return num_experts * sum(_binomial(tokens, p, i) * ceil_div(i, per_tile) for i in pairs)


def _binomial(n: int, p: float, i: int) -> float:
    """P(X = i); through logarithms, as the factors of thousands of tokens overflow."""
    if p == 1:
        return float(i == n)
    ways = lgamma(n + 1) - lgamma(i + 1) - lgamma(n - i + 1)
    return exp(ways + i * log(p) + (n - i) * log1p(-p))
