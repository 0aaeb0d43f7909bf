"""Cache rows between the levels of a verification, which compare bf16 rows, and a back end whose caches are packed.

Owns which inputs and outputs of a node are caches, and the way there and back; the layout itself stands in
`ops._packed`. Refuses rows that packing would change: no op writes such rows, and what a comparison shows then would
be the packing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ds4export.config import ModelConfig
from ds4export.errors import ParityError
from ds4export.model.weights import array_from_tensor, tensor_from_array
from ds4export.ops import ALL_OPS
from ds4export.ops._packed import packed, unpacked
from ds4export.parity.metrics import equal_bits
from ds4export.parity.subject import OpNode
from ds4export.state import KEY

Array = NDArray[Any]


@dataclass(frozen=True)
class PackedRows:
    """The rows of one model: its widths, and how much of a kv row is roped."""

    config: ModelConfig

    def pack(self, rows: Array, kind: str, where: object) -> Array:
        """bf16 [..., rows, width] -> int8 [..., rows, bytes]; the last row is scratch and may hold anything.

        Raises:
            ParityError: a row that is not codes times scales.
        """
        made = self._packed(rows, kind)
        changed = np.asarray(~equal_bits(self.unpack(made, kind), rows).all(-1))
        changed[..., -1] = False
        if changed.any():
            index = tuple(int(i) for i in np.argwhere(changed)[0])
            raise ParityError(
                "cache rows cannot be packed without a loss",
                where=where,
                found=f"{int(changed.sum())} rows of `{kind}` that are rounded, the first at {index}",
                expected="rows that hold codes times scales, as every op writes them",
            )
        return made

    def as_written(self, rows: Array, kind: str) -> Array:
        """bf16 [..., width] -> the nearest rows that an op could have written, of the same shape and dtype."""
        return self.unpack(self._packed(rows, kind), kind)

    def _packed(self, rows: Array, kind: str) -> Array:
        given = tensor_from_array(np.array(rows))
        return array_from_tensor(packed(given, kind, self.config.qk_rope_head_dim))

    def unpack(self, rows: Array, kind: str) -> Array:
        """int8 [..., bytes] -> bf16 [..., width]."""
        width = self.config.index_head_dim if kind == KEY else self.config.head_dim
        given = tensor_from_array(np.array(rows))
        return array_from_tensor(unpacked(given, kind, width, self.config.qk_rope_head_dim))


def input_kinds(node: OpNode) -> list[str | None]:
    """KV or KEY of each input of a node that is a cache with a packed form; None of every other."""
    op = ALL_OPS[node.op]
    return [op.cache[name].kind if name in op.cache else None for name in op.inputs]


def output_kinds(node: OpNode) -> list[str | None]:
    """Likewise of each output: it is what the input is that it shares a buffer with."""
    op, kinds = ALL_OPS[node.op], input_kinds(node)
    sources = [(op.aliases or {}).get(name) for name in op.outputs]
    names = list(op.inputs)
    return [None if source is None else kinds[names.index(source)] for source in sources]
