// hc_post: a sublayer's output and the streams that went into it -> the streams after it
//
// Maths     out[j] = bf16(post[j]·y + Σ_i comb[i, j]·x[i]); reference: ds4export/ops/hc_post.py
// Shapes    y [T, D], x [T, N, D] bf16, post [T, N], comb [T, N, N] f32 -> out [T, N, D] bf16      Layout  contiguous
// Roofline  2·(2N + 1) B and 2N(N + 1) flop per column: 2 flop/B, bandwidth; Flash (N 4, D 4096): 74 KB per token
// Tiling    grid [column tiles, tokens] | one pack of columns of all N streams per thread, every value read and written
//           once | the N(N + 1) coefficients of the token come from L1, the same for the whole block | no barrier
// Numerics  products and sums rounded one by one in the reference's order (no fma): bit-equal
// Limits    N = 2 or 4; tokens step by the grid
// Measured  on no GPU; run on the host
#pragma once
#include "common/vector.cuh"

namespace ds4::hc_post {

constexpr int THREADS = 128;

template <int STREAMS, int WIDTH>
__global__ void __launch_bounds__(THREADS) mix(bf16 const* y, bf16 const* x, float const* post, float const* comb, bf16* out, int64_t tokens, int width) {
  int const column = (static_cast<int>(blockIdx.x) * THREADS + static_cast<int>(threadIdx.x)) * WIDTH;
  if (column >= width) return;
  for (int64_t t = blockIdx.y; t < tokens; t += gridDim.y) {
    auto const own = load<WIDTH>(y + t * width + column);
    Pack<bf16, WIDTH> in[STREAMS];
#pragma unroll
    for (int i = 0; i < STREAMS; ++i) in[i] = load<WIDTH>(x + (t * STREAMS + i) * width + column);
#pragma unroll
    for (int j = 0; j < STREAMS; ++j) {
      Pack<bf16, WIDTH> result;
      float const gate = post[t * STREAMS + j];
#pragma unroll
      for (int k = 0; k < WIDTH; ++k) {
        float mixed = 0;
#pragma unroll
        for (int i = 0; i < STREAMS; ++i) {
          mixed = __fadd_rn(mixed, __fmul_rn(comb[(t * STREAMS + i) * STREAMS + j], float_from(in[i].value[k])));
        }
        result.value[k] = bf16_from(__fadd_rn(__fmul_rn(gate, float_from(own.value[k])), mixed));
      }
      store<WIDTH>(out + (t * STREAMS + j) * width + column, result);
    }
  }
}

}  // namespace ds4::hc_post
