"""Cache rows on their way into a back end and out again: as they are, or packed where it keeps packed caches.

Owns where packing happens, so that a verification sees bf16 rows whatever the layout. The rows themselves, and which
rows cannot be packed, stand in `packed_rows`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from numpy.typing import NDArray

from ds4export.config import ModelConfig
from ds4export.engine.cache_layout import PACKED
from ds4export.parity.packed_rows import PackedRows, output_kinds
from ds4export.parity.subject import OpNode
from ds4export.state import cache_kind

Array = NDArray[Any]


class CacheRows:
    """The rows of one model in one layout; `kind` is None of everything that is no cache with a packed form."""

    def __init__(self, config: ModelConfig, cache: str) -> None:
        self._packed = PackedRows(config) if cache == PACKED else None

    @property
    def are_packed(self) -> bool:
        return self._packed is not None

    def pack(self, rows: Array, kind: str | None, where: object) -> Array:
        """Rows as the back end takes them.

        Raises:
            ParityError: rows that packing would change.
        """
        return (
            rows if self._packed is None or kind is None else self._packed.pack(rows, kind, where)
        )

    def unpack(self, rows: Array, kind: str | None) -> Array:
        """The inverse of `pack`."""
        return rows if self._packed is None or kind is None else self._packed.unpack(rows, kind)

    def pack_feeds(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """What a graph is fed with, by its names; raises as `pack`."""
        return {name: self.pack(rows, cache_kind(name), name) for name, rows in feeds.items()}


def kinds_of_outputs(nodes: Iterable[OpNode]) -> dict[str, str | None]:
    """By value, KV or KEY of what nodes write to a cache with a packed form; None of all else that they make."""
    return {n: k for o in nodes for n, k in zip(o.outputs, output_kinds(o), strict=True)}
