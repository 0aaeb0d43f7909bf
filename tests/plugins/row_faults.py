"""Planted faults of the ops that finish rows and heads: (op, name, file below plugins/, old, new)."""

from __future__ import annotations

_ROW, _ROPE, _E4M3, _FP4 = (
    "common/warp_row.cuh",
    "common/rope.cuh",
    "common/a8.cuh",
    "common/hadamard_fp4.cuh",
)
_KV_ROW, _HEADS, _INDEX = (
    "kv_row/kv_row.cuh",
    "query_heads/query_heads.cuh",
    "index_query/index_query.cuh",
)

ROW_FAULTS = (
    (
        "kv_row",
        "turns read before they are written",
        _KV_ROW,
        "  __syncwarp();  // the turns are written\n",
        "",
    ),
    (
        "kv_row",
        "a row too many",
        _KV_ROW,
        "if (at >= num_rows) return;",
        "if (at > num_rows) return;",
    ),
    (
        "kv_row",
        "all tokens at the first position",
        _KV_ROW,
        "positions[at / num_tokens] + at % num_tokens",
        "positions[at / num_tokens]",
    ),
    (
        "kv_row",
        "roped dims quantised",
        _KV_ROW,
        "row.a8_64(width - 2 * num_freqs)",
        "row.a8_64(width)",
    ),
    ("kv_row", "ties of e4m3 upwards", _E4M3, "0x7ffffu + (bits >> 20 & 1)", "0x80000u"),
    ("kv_row", "a lower floor", _E4M3, "1e-4f", "1e-10f"),
    (
        "kv_row",
        "a scale one power too large",
        _E4M3,
        "+ ((ratio & 0x7fffffu) != 0);",
        "+ ((ratio & 0x7fffffu) != 0) + 1;",
    ),
    (
        "kv_row",
        "mean over another width",
        _ROW,
        "static_cast<float>(width) + eps",
        "static_cast<float>(width + 1) + eps",
    ),
    (
        "kv_row",
        "a column too many",
        _ROW,
        "if (column(i) + k < width) row[",
        "if (column(i) + k <= width) row[",
    ),
    (
        "query_heads",
        "turns read before they are written",
        _HEADS,
        "  __syncthreads();  // the turns are written\n",
        "",
    ),
    (
        "query_heads",
        "slices take each other's heads",
        _HEADS,
        "step = WARPS * static_cast<int>(gridDim.y);",
        "step = WARPS;",
    ),
    (
        "query_heads",
        "a head too many",
        _HEADS,
        "while (head < num_heads)",
        "while (head <= num_heads)",
    ),
    (
        "query_heads",
        "position of another batch row",
        _HEADS,
        "positions[token / num_tokens]",
        "positions[0]",
    ),
    (
        "query_heads",
        "turned backwards",
        _ROPE,
        "__fsub_rn(__fmul_rn(a, turn.cos)",
        "__fadd_rn(__fmul_rn(a, turn.cos)",
    ),
    ("query_heads", "turn of the next pair", _ROPE, "turns[dim / 2]", "turns[dim / 2 + 1]"),
    ("query_heads", "eps left out", _HEADS, "sqrtf(rounded(mean + eps))", "sqrtf(rounded(mean))"),
    (
        "index_query",
        "turns read before they are written",
        _INDEX,
        "  __syncthreads();  // the turns are written\n",
        "",
    ),
    (
        "index_query",
        "values beyond the last head",
        _INDEX,
        "if (column < num_values) store",
        "if (column <= num_values) store",
    ),
    (
        "index_query",
        "difference without its sign",
        _FP4,
        "(upper ? -value[k] : value[k])",
        "value[k]",
    ),
    ("index_query", "ties away from zero", _FP4, "rintf(", "roundf("),
    ("index_query", "scale one power up at its border", _FP4, "> 0x400000u", ">= 0x400000u"),
    ("index_query", "a lower floor", _FP4, "0x1.8p-124f", "0x1.8p-126f"),
    ("index_query", "a scale for 64", _FP4, "FP4_BLOCK / PER_LANE / 2", "FP4_BLOCK / PER_LANE"),
)
