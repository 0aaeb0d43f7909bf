"""Cases of the shapes that ship, and those that take every instance of a kernel; beside the cases of the op.

Flash has rows of 4096, Pro of 7168. They are drawn with few tokens: what they test is the width.
"""

from __future__ import annotations

from collections.abc import Sequence

from ds4export.ops._cases import Gen
from ds4export.ops._define import Case

FLASH, PRO, ODD = 4096, 7168, 33


def _embed(name: str, batch: int, tokens: int, width: int) -> Case:
    return Case(name, lambda g: (g.ids(batch, tokens, 11), g.bf16(11, width), 4, 1))


def _combine(name: str, *shape: int) -> Case:
    return Case(name, lambda g: (g.f32(*shape), g.x(*shape)))


def _merge(name: str, tokens: int, width: int) -> Case:
    return Case(name, lambda g: (g.x(1, tokens, 1, width), g.x(1, tokens, 4, width)))


def _norm(name: str, rows: int, width: int) -> Case:
    return Case(name, lambda g: (g.x(1, rows, width), g.bf16(width), 1e-6))


def _post(name: str, tokens: int, width: int, streams: int = 4) -> Case:
    def make(g: Gen) -> tuple[object, ...]:
        gates = g.f32(1, tokens, streams), g.f32(1, tokens, streams, streams).abs()
        return g.x(1, tokens, width), g.x(1, tokens, streams, width), *gates

    return Case(name, make)


def _pre(name: str, tokens: int, width: int) -> Case:
    def make(g: Gen) -> tuple[object, ...]:
        x, fn = g.x(1, tokens, 4, width), g.f32(24, 4 * width) * 0.02
        return x, fn, g.f32(24), g.f32(3).abs() + 0.5, g.bf16(width), 20, 1e-6, 1e-6

    return Case(name, make)


def _head(name: str, batch: int, rows: int, width: int) -> Case:
    def make(g: Gen) -> tuple[object, ...]:
        x, fn = g.x(batch, 3, 4, width), g.f32(4, 4 * width) * 0.02
        chosen = g.integers((batch, rows), -1, 3)
        return x, fn, g.f32(4), g.f32(1), g.bf16(width), chosen, 1e-6, 1e-6

    return Case(name, make)


KERNEL_CASES: dict[str, Sequence[Case]] = {
    "embed": (_embed("flash", 1, 2, FLASH), _embed("odd", 2, 3, ODD), _embed("no token", 1, 0, 64)),
    "moe_combine": (_combine("pro", 1, 1, PRO), _combine("no token", 1, 0, 64)),
    "mtp_merge": (_merge("flash", 1, FLASH), _merge("packs", 3, 40), _merge("no token", 0, 64)),
    "rms_norm": (
        _norm("flash", 3, FLASH),
        _norm("pro", 1, PRO),
        _norm("odd", 9, ODD),
        _norm("odd and wide", 2, 1025),
        _norm("many rows of a head", 19, 512),
        _norm("more wide rows than blocks", 19, 1032),
        _norm("no row", 0, 64),
    ),
    "hc_post": (
        _post("flash", 1, FLASH),
        _post("pro", 2, PRO),
        _post("two streams of packs", 3, 40, 2),
        _post("more tokens than blocks", 18, 32),
        _post("no token", 0, 64),
    ),
    "hc_pre": (_pre("flash", 5, FLASH), _pre("pro", 1, PRO), _pre("no token", 0, 64)),
    "hc_head": (_head("flash", 1, 1, FLASH), _head("pro", 2, 3, PRO), _head("no row", 1, 0, 64)),
}
