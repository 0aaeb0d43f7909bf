// hc_head: N streams of chosen rows -> one normed hidden state each
//
// Maths     q = fn·flatten(x) · rsqrt(mean(x²) + rms_eps); h = rms(bf16(Σ_n (sigmoid(q[n]·scale + base[n]) + hc_eps)·x[n]), norm);
//           reference: ds4export/ops/hc_head.py
// Shapes    x [B, T, N, D] bf16, fn [N, N·D] f32, base [N], scale [1] f32, norm [D] bf16, rows [B, R] int64 -> h [B, R, D] bf16
// Layout    rows contiguous; a row of -1 computes row 0, which means nothing
// Roofline  fn, 4·N·N·D B (Flash: 262 KB), and 2·N·D B per row: bandwidth, below launch cost
// Tiling    as hc_pre: slices of N·D -> workspace [B·R, slices, N + 1], then a block per row
// Numerics  float32, sums in another order than the reference; bf16 before the norm and after it
// Limits    N = 4; D a multiple of 8 up to 24576; rows lie in [-1, T)
// Measured  on no GPU; run on the host
#pragma once
#include "common/hyper_connection.cuh"

namespace ds4::hc_head {

constexpr int THREADS = 256;

template <int STREAMS, int WIDTH>
__global__ void __launch_bounds__(THREADS)
    finish(bf16 const* x, float const* partial, float const* base, float const* scale, bf16 const* norm, int64_t const* rows, int64_t rows_per_batch,
           int64_t tokens_per_batch, bf16* h, int slices, int width, float hc_eps, float rms_eps) {
  extern __shared__ __align__(16) unsigned char dynamic[];
  __shared__ float logits[STREAMS + 1], scratch[THREADS / LANES];
  int64_t const t = blockIdx.x;
  add_slices<STREAMS>(partial + t * slices * (STREAMS + 1), slices, STREAMS * width, rms_eps, logits);
  float gate[STREAMS];
#pragma unroll
  for (int n = 0; n < STREAMS; ++n) gate[n] = sigmoid(logits[n] * scale[0] + base[n]) + hc_eps;
  int64_t const token = source_token(t, rows, rows_per_batch, tokens_per_batch);
  gated_norm<STREAMS, WIDTH, THREADS>(x + token * STREAMS * width, gate, norm, h + t * width, width, rms_eps, reinterpret_cast<bf16*>(dynamic), scratch);
}

}  // namespace ds4::hc_head
