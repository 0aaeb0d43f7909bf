// mtp_merge: the projected embedding and the projected streams -> the streams of the MTP block
//
// Maths     out[t, n] = bf16(e[t] + h[t, n]); reference: ds4export/ops/mtp_merge.py
// Shapes    e [T, D], h [T, N, D] bf16 -> out [T, N, D] bf16, T = B·T      Layout  rows contiguous
// Roofline  2·(2N + 1) B and N flop per column: bandwidth; Flash (N 4, D 4096): 74 KB per token
// Tiling    grid over packs of columns of all rows [t, n] | one pack per thread and step | no shared memory, no barrier
// Numerics  one addition, one rounding: exact                              Limits  T >= 0; packs of 8 where D % 8 == 0
// Measured  on no GPU; run on the host
#pragma once
#include "common/vector.cuh"

namespace ds4::mtp_merge {

constexpr int THREADS = 256;

template <int WIDTH>
__global__ void __launch_bounds__(THREADS) merge(bf16 const* e, bf16 const* h, bf16* out, int64_t num_packs, int streams, int packs_per_row) {
  int64_t const step = int64_t{gridDim.x} * THREADS;
  for (int64_t i = int64_t{blockIdx.x} * THREADS + threadIdx.x; i < num_packs; i += step) {
    int64_t const row = i / packs_per_row, token = row / streams;
    auto const left = load<WIDTH>(e + (token * packs_per_row + i % packs_per_row) * WIDTH);
    auto pack = load<WIDTH>(h + i * WIDTH);
#pragma unroll
    for (int k = 0; k < WIDTH; ++k) pack.value[k] = bf16_from(float_from(left.value[k]) + float_from(pack.value[k]));
    store<WIDTH>(out + i * WIDTH, pack);
  }
}

}  // namespace ds4::mtp_merge
