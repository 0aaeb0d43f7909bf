"""Planted faults of the compressors: (op, name, file below plugins/, old, new)."""

from __future__ import annotations

_ROWS, _PROJECT, _POOL, _LAUNCH = (
    "compress_kv/compress_kv.cuh",
    "compress_kv/project.cuh",
    "compress_kv/pool.cuh",
    "compress_kv/compress_kv_launch.cu",
)

COMPRESS_FAULTS = (
    (
        "compress_csa",
        "halves swapped",
        _POOL,
        "at >= end - ratio ? width : 0",
        "at < end - ratio ? width : 0",
    ),
    (
        "compress_csa",
        "rows of before the sequence count",
        _POOL,
        "at >= 0 && at < end ?",
        "at < end ?",
    ),
    (
        "compress_csa",
        "a chunk of several tokens made in the ring",
        _LAUNCH,
        "return x.dims[1] == 1;",
        "return x.dims[1] <= 64;",
    ),
    (
        "compress_csa",
        "no barrier in the norm",
        "common/vector.cuh",
        "  __syncthreads();\n",
        "",
    ),
    (
        "compress_csa",
        "rows read before their places are known",
        _POOL,
        "  __syncthreads();  // the places of the rows and the turns are known\n",
        "",
    ),
    (
        "compress_csa",
        "padding makes rows",
        _PROJECT,
        "if (!is_new(token)) return;",
        "if (token >= num_tokens) return;",
    ),
    (
        "compress_csa",
        "roped dims rounded too",
        _POOL,
        "MOST_WIDTH = 512, TEAMS = 1;\n"
        "  __device__ static void finish(float (&value)[CHANNELS], int channel, int num_plain) { "
        "a8_64_round_trip(value, num_plain - channel); }",
        "MOST_WIDTH = 512, TEAMS = 1;\n"
        "  __device__ static void finish(float (&value)[CHANNELS], int, int) { a8_64_round_trip(value); }",
    ),
    (
        "compress_hca",
        "no barrier before the shares are added",
        _POOL,
        "    __syncthreads();  // the shares of all teams are written\n",
        "",
    ),
    ("compress_hca", "a team left out", _POOL, "for (int i = 1; i < Op::TEAMS", "for (int i = 2; i < Op::TEAMS"),
    (
        "compress_hca",
        "shares of another maximum added",
        _POOL,
        "      other.rescale(k, next);\n",
        "",
    ),
    (
        "compress_hca",
        "ape of the place in the chunk",
        _PROJECT,
        "int64_t{at % ratio}",
        "(token % rows.num_tokens % ratio)",
    ),
    (
        "compress_hca",
        "turned by the last position of the block",
        _POOL,
        "(turns, number * ratio, freqs",
        "(turns, number * ratio + ratio - 1, freqs",
    ),
    (
        "compress_hca",
        "new rows of another sequence",
        _ROWS,
        "fresh + b * num_tokens * columns",
        "fresh + slots[b] * num_tokens * columns",
    ),
    ("compress_index", "no Hadamard", _POOL, "hadamard_fp4<MOST_WIDTH>(value)", "fp4_round_trip(value)"),
    (
        "compress_index",
        "an entry before its block is complete",
        _POOL,
        "(own.position + own.num_new) / ratio",
        "(own.position + own.num_new + 1) / ratio",
    ),
    (
        "compress_index",
        "first rows kept, not the last",
        _POOL,
        "own.num_new - num_kept + static_cast<int>(blockIdx.x % num_kept)",
        "min(own.num_new - num_kept, 0) + static_cast<int>(blockIdx.x % num_kept)",
    ),
    ("compress_index", "mean over another width", _POOL, "static_cast<float>(width) + eps", "512.0f + eps"),
    (
        "compress_index",
        "one entry of a chunk",
        _LAUNCH,
        "(rows.num_tokens + a.ratio() - 1) / a.ratio();",
        "1;",
    ),
)  # fmt: skip
