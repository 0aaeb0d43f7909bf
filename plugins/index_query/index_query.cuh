// index_query: the indexer's queries
//
// Maths     rope on the last r dims of each head, bf16;  Hadamard·d^-0.5, bf16, FP4 round trip; reference: ds4export/ops/index_query.py
// Shapes    x [B, T, h·d] bf16, positions [B] int64, freqs [r/2] f32 -> q [B, T, h, d] bf16      Layout  16-byte aligned
// Roofline  4 B and about 20 flop per value: bandwidth; 32 KB a token at 64 heads of 128
// Tiling    block = one token x a slice of its heads, 8 warps; a lane holds 8 neighbours, so a warp 256 / d heads (common/
//           hadamard_fp4.cuh); each warp takes every 8th such group of the slice
//           cos and sin of the token: one frequency per thread into shared memory, one barrier; computed once per token and
//           frequency as long as there are as many tokens as multiprocessors, else once per slice, side by side
// Numerics  float32 butterfly in place of the matrix product; all roundings of the reference in its order. On the host
//           bit-equal to the reference in every case
// Limits    d 32, 64 or 128; any h, T, B
// Measured  on no GPU; run on the host
#pragma once
#include "common/hadamard_fp4.cuh"
#include "common/rope.cuh"

namespace ds4::index_query {

constexpr int THREADS = 256, WARPS = THREADS / LANES;
constexpr int PER_LANE = 8;

template <int DIM>
constexpr int HEADS_PER_WARP = LANES * PER_LANE / DIM;

// Grid: tokens x slices.
template <int DIM>
__global__ void __launch_bounds__(THREADS)
    rotate_and_quantise(bf16 const* x, int64_t const* positions, float const* freqs, bf16* q, int num_tokens, int num_heads, int num_freqs) {
  __shared__ Turn turns[DIM / 2];
  int64_t const token = blockIdx.x;
  int const thread = static_cast<int>(threadIdx.x), num_values = num_heads * DIM;
  x += token * num_values;
  q += token * num_values;
  write_turns<THREADS>(turns, static_cast<int>(positions[token / num_tokens] + token % num_tokens), freqs, num_freqs, thread);
  __syncthreads();  // the turns are written
  int const step = THREADS * PER_LANE * static_cast<int>(gridDim.y);
  // the lanes of a warp stay together: its first column decides
  int const lane_column = thread % LANES * PER_LANE;
  for (int first = (thread - thread % LANES + THREADS * static_cast<int>(blockIdx.y)) * PER_LANE; first < num_values; first += step) {
    int const column = first + lane_column;
    Pack<bf16, PER_LANE> pack = {};
    if (column < num_values) pack = load<PER_LANE>(x + column);
    float value[PER_LANE];
#pragma unroll
    for (int k = 0; k < PER_LANE; ++k) value[k] = float_from(pack.value[k]);
    // q = rounded(rotated(x, positions, freqs))
    rotate(value, column % DIM - (DIM - 2 * num_freqs), turns, num_freqs);
#pragma unroll
    for (int k = 0; k < PER_LANE; ++k) value[k] = rounded(value[k]);
    // hadamard_fp4(q)
    hadamard_fp4<DIM>(value);
#pragma unroll
    for (int k = 0; k < PER_LANE; ++k) pack.value[k] = bf16_from(value[k]);
    if (column < num_values) store<PER_LANE>(q + column, pack);
  }
}

}  // namespace ds4::index_query
