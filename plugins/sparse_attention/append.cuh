// append: the chunk's rows of kv -> the ring, after every reader of the rows that they replace
//
// Maths     ring[slot, (position + t) mod R] = kv[b, t] for the last R of the new positions; reference: ds4export/ops/_ring.py
// Shapes    kv [B, T, d] bf16, ring [S, R + 1, d] bf16, or [S, R + 1, bytes] packed; row R is scratch and is left alone
// Layout    rows of kv 16-byte aligned, packed ones 8-byte aligned
// Roofline  4·d bytes a row, 2 KB at d 512, packed 1.6 KB: below the cost of its launch
// Tiling    a block copies a row, 16 bytes of it a thread; packed: 8 lanes share a scale
// Numerics  copies; packed: common/packed_rows.cuh       Limits  d a multiple of 8, packed: up to 512
// Measured  not run on a GPU; every case run on the host from its PTX
#pragma once
#include "common/packed_rows.cuh"
#include "common/tensor_core.cuh"
#include "common/vector.cuh"

namespace ds4::sparse_attention {

constexpr int APPEND_THREADS = 64;

// Grid: rows of kv.
template <bool packed>
__global__ void __launch_bounds__(APPEND_THREADS)
    append(bf16 const* kv, uint8_t* ring, int64_t const* slots, int64_t const* positions, int64_t const* num_new, int num_tokens,
           int num_ring_rows, int width, int num_roped) {
  int64_t const b = blockIdx.x / num_tokens, t = blockIdx.x % num_tokens, length = num_ring_rows - 1;
  if (t >= num_new[b] || t < num_new[b] - length) return;
  int const thread = static_cast<int>(threadIdx.x);
  int const row_bytes = packed ? packed_kv_bytes(width, num_roped) : width * static_cast<int>(sizeof(bf16));
  bf16 const* const from = kv + int64_t{blockIdx.x} * width;
  uint8_t* const to = ring + (slots[b] * num_ring_rows + (positions[b] + t) % length) * row_bytes;
  if constexpr (packed) {
    Pack<bf16, PIECE> values = {};
    if (thread * PIECE < width) values = load<PIECE>(from + thread * PIECE);
    pack_kv(values, thread * PIECE, {width, width - num_roped}, to);
  } else {
    for (int i = thread; i < width / PIECE; i += APPEND_THREADS) reinterpret_cast<uint4*>(to)[i] = reinterpret_cast<uint4 const*>(from)[i];
  }
}

}  // namespace ds4::sparse_attention
