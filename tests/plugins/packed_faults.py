"""Planted faults of packed cache rows: (op, name, file below plugins/, old, new)."""

from __future__ import annotations

_ROWS, _ATTENTION, _INDEXER = (
    "common/packed_rows.cuh",
    "sparse_attention/sparse_attention.cuh",
    "indexer_topk/indexer_topk.cuh",
)

PACKED_FAULTS = (
    (
        "attention_csa",
        "scale of the next block, of the last the pad byte",
        _ROWS,
        "2 * width - num_codes + dim / KV_SCALE_BLOCK; }",
        "2 * width - num_codes + dim / KV_SCALE_BLOCK + 1; }",
    ),
    ("attention_csa", "codes swapped in a pair", _ROWS, "codes.y, TWO_TO_120, 0x3424", "codes.y, TWO_TO_120, 0x2434"),
    (
        "attention_hca",
        "keys multiplied before all are bf16",
        _ATTENTION,
        "        __syncthreads();  // all keys are bf16\n",
        "",
    ),
    (
        "attention_hca",
        "a row written while it is read",
        _ATTENTION,
        "      __syncwarp();\n#pragma unroll\n      for (int i = 0; i < PER_LANE; ++i) {\n"
        "        if (int const at = lane + i * LANES; at < C::PIECES) *reinterpret_cast",
        "#pragma unroll\n      for (int i = 0; i < PER_LANE; ++i) {\n"
        "        if (int const at = lane + i * LANES; at < C::PIECES) *reinterpret_cast",
    ),
    (
        "attention_window",
        "rows of the chunk taken for packed ones",
        _ATTENTION,
        "* C::WIDTH, false};",
        "* C::WIDTH, C::PACKED};",
    ),
    (
        "attention_window",
        "largest value of half a block",
        _ROWS,
        "int step = KV_SCALE_BLOCK / PER_LANE / 2; step;",
        "int step = KV_SCALE_BLOCK / PER_LANE / 4; step;",
    ),
    ("attention_window", "the pad keeps its byte", _ROWS, "if (dim) return;", "return;"),
    ("indexer_topk", "nibbles swapped", _ROWS, "(two & 0x0fu) | (two & 0xf0u) << 12", "two >> 4 | (two & 0x0fu) << 16"),
    (
        "indexer_topk",
        "scale of other dims",
        _INDEXER,
        "piece * PIECE / KEY_SCALE_BLOCK]",
        "piece % (C::WIDTH / KEY_SCALE_BLOCK)]",
    ),
)  # fmt: skip
