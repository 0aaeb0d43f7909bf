"""What one sequence leaves behind in each layer: the table that model, graph and runtime share.

Owns names, rows, widths and dtypes of the state tensors, `state.<layer>.<name>` of shape [S, rows, width] with S
slots. Refuses nothing: capacities are checked by the runtime. Specification section 8, design decisions 10 to 12.
"""

from __future__ import annotations

from dataclasses import dataclass

from ds4export.config import ModelConfig

BOUNDARY, F32 = "boundary", "float32"


@dataclass(frozen=True)
class StateSpec:
    """One state tensor of a layer, without the slot axis. The last row is scratch that padding writes to."""

    name: str
    rows: int
    width: int
    dtype: str  # BOUNDARY: bf16 in official numerics, else float32


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
