"""What one sequence leaves behind in each layer: the table that model, graph and runtime share.

Owns names, rows, widths and dtypes of the state tensors, `state.<layer>.<name>` of shape [S, rows, width] with S
slots, and the size of a row that is packed. Refuses a width that cannot be packed; capacities are checked by the
runtime. Specification section 8, design decisions 10 to 13.
"""

from __future__ import annotations

from dataclasses import dataclass

from ds4export.config import ModelConfig
from ds4export.errors import ExportError

BOUNDARY, F32 = "boundary", "float32"
KV, KEY = "kv", "key"
PACKED_STATE = {"window": KV, "entries": KV, "index_keys": KEY}  # what a packed layout changes
KV_SCALE_BLOCK, KEY_SCALE_BLOCK = 64, 32  # values that share a scale byte


@dataclass(frozen=True)
class StateSpec:
    """One state tensor of a layer, without the slot axis. The last row is scratch that padding writes to."""

    name: str
    rows: int
    width: int
    dtype: str  # BOUNDARY: bf16 in official numerics, else float32; INT8 in a packed pool


def layer_state(
    config: ModelConfig, ratio: int, max_context: int, spare: int = 0
) -> tuple[StateSpec, ...]:
    """State tensors of a layer with compression `ratio`, in the order the layer takes them.

    Rings hold `spare` rows more than exactness needs, so that `spare` + 1 drafted tokens can be undone.
    """
    d, window = (
        config.head_dim,
        StateSpec("window", config.sliding_window + spare + 1, config.head_dim, BOUNDARY),
    )
    if ratio == 0:
        return (window,)
    overlap = 2 if ratio == 4 else 1
    pending_rows, entry_rows = overlap * ratio + spare + 1, max_context // ratio + 1
    main = (
        StateSpec("pending", pending_rows, 2 * overlap * d, F32),  # rows u ++ s of the compressor
        StateSpec("entries", entry_rows, d, BOUNDARY),
    )
    if ratio != 4:
        return (window, *main)
    width = config.index_head_dim
    index = (
        StateSpec("index_pending", pending_rows, 2 * overlap * width, F32),
        StateSpec("index_keys", entry_rows, width, BOUNDARY),
    )
    return (window, *main, *index)


def cache_kind(name: str) -> str | None:
    """KV or KEY of a graph's state input or output that has a packed form; None of every other tensor.

    Example:
        >>> cache_kind("state.layers.1.index_keys_out"), cache_kind("state.layers.1.pending")
        ('key', None)
    """
    if not name.startswith("state."):
        return None
    return PACKED_STATE.get(name.removesuffix("_out").rsplit(".", 1)[-1])


def packed_row_bytes(kind: str, width: int, rope_dims: int = 0) -> int:
    """Bytes of one packed row, the last dimension of an INT8 state tensor (specification 8.3).

    kv    width - rope_dims e4m3 codes, rope_dims bf16, an E8M0 scale per 64 codes, zeros to a multiple of 8
    key   two e2m1 codes a byte, the even one low, then an E8M0 scale per 32 codes

    Raises:
        ExportError: rows of this width cannot be packed.

    Example:
        >>> packed_row_bytes(KV, 512, 64), packed_row_bytes(KEY, 128)
        (584, 68)
    """
    if kind == KEY:
        if width % 128 or width <= 0:
            raise _unpackable(
                "index keys", f"{width} wide", "a multiple of 128: whole words of scales"
            )
        return width // 2 + width // KEY_SCALE_BLOCK
    codes = width - rope_dims
    if width % 8 or rope_dims % 8 or not 0 <= rope_dims <= width or not width:
        found = f"{width} wide, {rope_dims} of them roped"
        raise _unpackable("kv rows", found, "both multiples of 8, at most all of them roped")
    return -(-(codes + 2 * rope_dims + -(-codes // KV_SCALE_BLOCK)) // 8) * 8


def _unpackable(rows: str, found: str, expected: str) -> ExportError:
    return ExportError(
        f"{rows} of this width cannot be packed",
        where="cache layout",
        found=found,
        expected=expected,
        hint="keep the native layout",
    )
