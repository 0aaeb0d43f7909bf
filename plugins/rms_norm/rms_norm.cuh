// rms_norm: rows -> rows of root mean square 1, times a weight
//
// Maths     y = bf16(x · rsqrt(mean(x²) + eps) · weight); reference: ds4export/ops/rms_norm.py
// Shapes    x [R, D] bf16, weight [D] bf16 -> y [R, D] bf16                 Layout  rows contiguous
// Roofline  4 B and 4 flop per value: bandwidth; D 4096: 16 KB per row
// Tiling    D <= 1024: a warp per row, 8 rows per block | else a block per row | the row is read twice, the second time
//           from L1 | one barrier per row in the block form, none in the warp form
// Numerics  squares summed in float32: lanes in strides, then a tree; 1 / sqrt rounded twice; products in the reference's
//           order; one rounding to bf16                                     Limits  D >= 1, R >= 0
// Measured  on no GPU; run on the host
#pragma once
#include "common/vector.cuh"

namespace ds4::rms_norm {

constexpr int THREADS = 256, WARP_FORM_WIDTH = 1024;

// TEAM threads share a row: a warp or the block.
template <int TEAM, int WIDTH>
__global__ void __launch_bounds__(THREADS) norm(bf16 const* x, bf16 const* weight, bf16* y, int64_t rows, int width, float eps) {
  constexpr int TEAMS = THREADS / TEAM;
  __shared__ float scratch[2][THREADS / LANES];
  int const member = static_cast<int>(threadIdx.x) % TEAM * WIDTH;
  int64_t const first = int64_t{blockIdx.x} * TEAMS + threadIdx.x / TEAM;
  int turn = 0;  // rows alternate between two scratch lines, so that one barrier per row is enough
  for (int64_t row = first; row < rows; row += int64_t{gridDim.x} * TEAMS, turn ^= 1) {
    float squares = 0;
    for (int c = member; c < width; c += TEAM * WIDTH) {
      auto const pack = load<WIDTH>(x + row * width + c);
#pragma unroll
      for (int k = 0; k < WIDTH; ++k) squares += float_from(pack.value[k]) * float_from(pack.value[k]);
    }
    float const total = TEAM == LANES ? warp_sum(squares) : block_sum<THREADS>(squares, scratch[turn]);
    float const scale = 1.0f / sqrtf(total / static_cast<float>(width) + eps);
    for (int c = member; c < width; c += TEAM * WIDTH) {
      auto pack = load<WIDTH>(x + row * width + c);
      auto const gain = load<WIDTH>(weight + c);
#pragma unroll
      for (int k = 0; k < WIDTH; ++k) pack.value[k] = bf16_from(float_from(pack.value[k]) * scale * float_from(gain.value[k]));
      store<WIDTH>(y + row * width + c, pack);
    }
  }
}

}  // namespace ds4::rms_norm
