// append: the chunk's rows of kv -> the ring, after every reader of the rows that they replace
//
// Maths     ring[slot, (position + t) mod R] = kv[b, t] for the last R of the new positions; reference: ds4export/ops/_ring.py
// Shapes    kv [B, T, d], ring [S, R + 1, d] bf16; row R is scratch and is left alone       Layout  rows 16-byte aligned
// Roofline  4·d bytes a row, 2 KB at d 512: below the cost of its launch
// Tiling    a block copies a row, 16 bytes a thread       Numerics  copies       Limits  d a multiple of 8
// Measured  not run on a GPU; every case run on the host from its PTX
#pragma once
#include "common/tensor_core.cuh"
#include "common/vector.cuh"

namespace ds4::sparse_attention {

constexpr int APPEND_THREADS = 64;

// Grid: rows of kv.
__global__ void __launch_bounds__(APPEND_THREADS)
    append(bf16 const* kv, bf16* ring, int64_t const* slots, int64_t const* positions, int64_t const* num_new, int num_tokens,
           int num_ring_rows, int width) {
  int64_t const b = blockIdx.x / num_tokens, t = blockIdx.x % num_tokens, length = num_ring_rows - 1;
  if (t >= num_new[b] || t < num_new[b] - length) return;
  auto const* const from = reinterpret_cast<uint4 const*>(kv + int64_t{blockIdx.x} * width);
  auto* const to = reinterpret_cast<uint4*>(ring + (slots[b] * num_ring_rows + (positions[b] + t) % length) * width);
  for (int i = static_cast<int>(threadIdx.x); i < width / PIECE; i += APPEND_THREADS) to[i] = from[i];
}

}  // namespace ds4::sparse_attention
