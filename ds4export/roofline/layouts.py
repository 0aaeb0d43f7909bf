"""The two layouts of cache rows: as the graph has them, bf16, or packed (docs/adr/0015).

Owns which bytes a kept row has. Rows that are new in a step (`kv_row`'s output) are bf16 in either layout, and pending
rows of the compressors are float32.
"""

from __future__ import annotations

from enum import Enum

from ds4export.config import ModelConfig
from ds4export.roofline.kernel import BF16, F32
from ds4export.state import KEY, KV, PACKED_STATE, StateSpec, packed_row_bytes


class Layout(Enum):
    """What a row of window, entries or index keys is kept as; refuses to pack widths that have no packed form."""

    NATIVE = "native"
    PACKED = "packed"

    def kv_bytes(self, c: ModelConfig) -> int:
        """Of a row of the window or of the entries: Flash and Pro 1,024, packed 584."""
        return self._row_bytes(KV, c.head_dim, c.qk_rope_head_dim)

    def key_bytes(self, c: ModelConfig) -> int:
        """Of an index key: Flash and Pro 256, packed 68."""
        return self._row_bytes(KEY, c.index_head_dim, c.qk_rope_head_dim)

    def state_bytes(self, c: ModelConfig, spec: StateSpec) -> int:
        """All rows of one state tensor of one sequence."""
        kind = PACKED_STATE.get(spec.name)
        if kind is None:
            return spec.rows * spec.width * F32
        return spec.rows * (self.key_bytes(c) if kind == KEY else self.kv_bytes(c))

    def _row_bytes(self, kind: str, width: int, rope_dims: int) -> int:
        if self is Layout.PACKED:
            return packed_row_bytes(kind, width, rope_dims)
        return width * BF16
