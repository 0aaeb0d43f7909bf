// query_heads: projected queries -> normed, rotated heads
//
// Maths     q = bf16(x · bf16(rsqrt(bf16(bf16(mean(bf16(x²))) + eps))));  rope on the last r dims, bf16;
//           reference: ds4export/ops/query_heads.py
// Shapes    x [B, T, H·d] bf16, positions [B] int64, freqs [r/2] f32 -> q [B, T, H, d] bf16      Layout  heads contiguous
// Roofline  4 B per value read and written, a few flop each: bandwidth; d 512: 128 KB a token at 64 heads, 256 KB at 128
// Tiling    block = one token x a slice of its heads; 8 warps, each takes every 8th head of the slice into registers
//           (common/warp_row.cuh), 1 KB at d 512
//           cos and sin of the token: one frequency per thread into shared memory, while each warp's first head is on its way;
//           one barrier. With as many tokens as multiprocessors a slice is all heads, so they are computed once per token and
//           frequency; with fewer, a token is cut into up to H/8 slices that compute them again, side by side
// Numerics  squares summed in float32: 16 of a lane, then a tree; all roundings of the reference in its order. On the host
//           bit-equal to the reference in every case
// Limits    d even, at most 512; any H, T, B
// Measured  on no GPU; run on the host
#pragma once
#include "common/warp_row.cuh"

namespace ds4::query_heads {

constexpr int THREADS = 256, WARPS = THREADS / LANES;

// Grid: tokens x slices.
template <bool aligned>
__global__ void __launch_bounds__(THREADS)
    rotate_heads(bf16 const* x, int64_t const* positions, float const* freqs, bf16* q, int num_tokens, int num_heads, int width,
                 int num_freqs, float eps) {
  __shared__ Turn turns[WarpRow::MOST_FREQS];
  int64_t const token = blockIdx.x;
  int const thread = static_cast<int>(threadIdx.x), step = WARPS * static_cast<int>(gridDim.y);
  int head = thread / LANES + WARPS * static_cast<int>(blockIdx.y);
  WarpRow row;
  x += token * num_heads * width;
  q += token * num_heads * width;
  if (head < num_heads) row.load_from<aligned>(x + int64_t{head} * width, width);
  write_turns<THREADS>(turns, static_cast<int>(positions[token / num_tokens] + token % num_tokens), freqs, num_freqs, thread);
  __syncthreads();  // the turns are written
  while (head < num_heads) {
    // mean = rounded(rounded(q * q).mean());  factor = rounded(rsqrt(rounded(mean + eps)));  q = rounded(q * factor)
    float const mean = rounded(row.sum([](float v) { return rounded(v * v); }) / static_cast<float>(width));
    float const factor = rounded(1.0f / sqrtf(rounded(mean + eps)));
    row.map([=](float v) { return rounded(v * factor); });
    row.rotate_by(turns, width, num_freqs);
    row.store_to<aligned>(q + int64_t{head} * width, width);
    head += step;
    if (head < num_heads) row.load_from<aligned>(x + int64_t{head} * width, width);
  }
}

}  // namespace ds4::query_heads
