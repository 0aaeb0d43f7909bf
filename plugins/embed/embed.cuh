// embed: token ids -> N identical residual streams
//
// Maths     x[t, n] = weight[ids[t]]; reference: ds4export/ops/embed.py
// Shapes    ids [T] int64, weight [V, D] bf16 -> x [T, N, D] bf16, T = B·T      Layout  rows contiguous
// Roofline  2·(N + 1) B per column and no flop: bandwidth; Flash (N 4, D 4096): 41 KB per token
// Tiling    grid over packs of columns of all tokens | a pack is read once and written N times | no barrier
// Numerics  a copy                      Limits  ids lie in [0, V): the caller's promise, as in the reference; T >= 0
// Measured  on no GPU; run on the host
#pragma once
#include "common/vector.cuh"

namespace ds4::embed {

constexpr int THREADS = 256;

template <int WIDTH>
__global__ void __launch_bounds__(THREADS) look_up(int64_t const* ids, bf16 const* weight, bf16* x, int64_t num_packs, int streams, int packs_per_row) {
  int64_t const step = int64_t{gridDim.x} * THREADS;
  for (int64_t i = int64_t{blockIdx.x} * THREADS + threadIdx.x; i < num_packs; i += step) {
    int64_t const token = i / packs_per_row, column = i % packs_per_row;
    auto const pack = load<WIDTH>(weight + (ids[token] * packs_per_row + column) * WIDTH);
    for (int n = 0; n < streams; ++n) store<WIDTH>(x + ((token * streams + n) * packs_per_row + column) * WIDTH, pack);
  }
}

}  // namespace ds4::embed
