"""What a planted fault is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tests.parity.mutate import Edit
from tests.parity.plant import Plant

FLOAT32, OFFICIAL = "float32", "official"


@dataclass(frozen=True)
class Fault:
    """One mistake: what it is, where it is planted, and the op that must be named as the first divergence.

    `expect` is a part of the line, for example `layer 0, hc_post`.
    """

    name: str
    group: str
    where: str
    expect: str
    plant: Callable[[Plant], None]
    numerics: str = FLOAT32
    set_name: str = "tiny-a"
    quick: bool = False

    @property
    def key(self) -> str:
        """Which artefact it is planted in."""
        return f"{self.set_name} {self.numerics}"


def in_body(
    name: str,
    group: str,
    expect: str,
    ops: str,
    *edits: Edit,
    graph: str = "",
    numerics: str = FLOAT32,
    quick: bool = False,
    **attributes: int,
) -> Fault:
    """A fault in the bodies of `ops` (names with spaces between), from edits of source or other attributes."""

    def plant(p: Plant) -> None:
        for op in ops.split():
            p.body(op, *edits, graph=graph, attributes=attributes)

    where = "body of " + ", ".join(f"`{op}`" for op in ops.split())
    if graph:
        where += f" in the {graph} graph"
    return Fault(name, group, where, expect, plant, numerics, quick=quick)
