// kv_row: the projected latent -> the row that attention reads as key and value
//
// Maths     kv = bf16(x · rsqrt(mean(x²) + eps) · norm);  rope on the last r dims, bf16;  A8(64) round trip on the other dims;
//           reference: ds4export/ops/kv_row.py
// Shapes    x [B, T, d] bf16, norm [d] bf16, positions [B] int64, freqs [r/2] f32 -> kv [B, T, d] bf16      Layout  rows contiguous
// Roofline  4 B per value read and written, 2 KB a row at d 512, a few flop each: bandwidth; 4096 rows are 8 MB
// Tiling    a warp per row, 4 rows per block | the row stays in registers (common/warp_row.cuh) | cos and sin of the row: one
//           frequency per lane, into shared memory | one barrier of the warp
// Numerics  squares summed in float32: 16 of a lane, then a tree; 1 / sqrt rounded twice; products in the reference's order; all
//           roundings of the reference in its order. On the host bit-equal to the reference in every case; of 4096 random rows
//           of 512, 7 values are a code apart
// Limits    d even, at most 512; any B, T
// Measured  on no GPU; run on the host
#pragma once
#include "common/warp_row.cuh"

namespace ds4::kv_row {

constexpr int THREADS = 128, WARPS = THREADS / LANES;

// Grid: rows / 4.
template <bool aligned>
__global__ void __launch_bounds__(THREADS) finish(bf16 const* x, bf16 const* norm, int64_t const* positions, float const* freqs, bf16* kv,
                                                  int64_t num_rows, int num_tokens, int width, int num_freqs, float eps) {
  __shared__ Turn turns[WARPS][WarpRow::MOST_FREQS];
  int const warp = static_cast<int>(threadIdx.x) / LANES, lane = static_cast<int>(threadIdx.x) % LANES;
  int64_t const at = int64_t{blockIdx.x} * WARPS + warp;
  if (at >= num_rows) return;
  WarpRow row;
  row.load_from<aligned>(x + at * width, width);
  write_turns<LANES>(turns[warp], static_cast<int>(positions[at / num_tokens] + at % num_tokens), freqs, num_freqs, lane);
  // kv = rounded(rms(x, norm, eps))
  row.norm_by<aligned>(norm, width, eps);
  // kv = rounded(rotated(kv, positions, freqs))
  __syncwarp();  // the turns are written
  row.rotate_by(turns[warp], width, num_freqs);
  row.map([](float v) { return rounded(v); });
  // rounded_nope(kv, 2 * len(freqs))
  row.a8_64(width - 2 * num_freqs);
  row.store_to<aligned>(kv + at * width, width);
}

}  // namespace ds4::kv_row
