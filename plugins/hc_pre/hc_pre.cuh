// hc_pre: N streams -> the sublayer's normed input, the gates after it and a doubly stochastic stream mix
//
// Maths     q = fn·flatten(x) · rsqrt(mean(x²) + rms_eps); pre, post = sigmoids of q; comb = Sinkhorn of the rest;
//           a = rms(bf16(Σ_n pre[n]·x[n]), norm); reference: ds4export/ops/hc_pre.py
// Shapes    x [T, N, D] bf16, fn [(2+N)N, N·D] f32, base, scale f32, norm [D] bf16 -> a [T, D] bf16, post [T, N],
//           comb [T, N, N] f32                                              Layout  rows contiguous
// Roofline  decode: fn, 4·(2+N)N·N·D B (Flash: 1.6 MB): bandwidth. Prefill: 2(2+N)N·N·D flop per token over 2·N·D B
// Tiling    1. grid [slices of 1024 of N·D, tiles of 4 tokens]: partial dot products -> workspace [T, slices, (2+N)N + 1]
//           2. a block per token: slices added in order | Sinkhorn in N·N lanes of warp 0, one element each, sums by
//           shuffles | streams read once more, the gated sum kept in shared memory until its norm is known
//           (2·D B; barriers: 3 for the logits, 1 for the norm)
// Numerics  float32, sums in another order than the reference; bf16 before the norm and after it
// Limits    N = 2 or 4; D a multiple of 8 up to 24576; T >= 0
// Measured  on no GPU; run on the host
#pragma once
#include "common/hyper_connection.cuh"

namespace ds4::hc_pre {

constexpr int THREADS = 256;

// Sums over rows (j) or columns (i) of an N x N matrix that lies in N·N lanes, lane i·N + j.
template <int STREAMS>
__device__ inline float over_row(float c, unsigned lanes) {
#pragma unroll
  for (int step = STREAMS / 2; step; step /= 2) c += __shfl_xor_sync(lanes, c, step);
  return c;
}
template <int STREAMS>
__device__ inline float over_column(float c, unsigned lanes) {
#pragma unroll
  for (int step = STREAMS / 2; step; step /= 2) c += __shfl_xor_sync(lanes, c, step * STREAMS);
  return c;
}

template <int STREAMS>
__device__ inline float sinkhorn(float c, int iterations, float eps) {
  constexpr unsigned ALL = (1u << (STREAMS * STREAMS)) - 1;
  float peak = c;
#pragma unroll
  for (int step = STREAMS / 2; step; step /= 2) peak = fmaxf(peak, __shfl_xor_sync(ALL, peak, step));
  c = expf(c - peak);
  c = c / over_row<STREAMS>(c, ALL) + eps;
  c = c / (over_column<STREAMS>(c, ALL) + eps);
  for (int i = 1; i < iterations; ++i) {
    c = c / (over_row<STREAMS>(c, ALL) + eps);
    c = c / (over_column<STREAMS>(c, ALL) + eps);
  }
  return c;
}

template <int STREAMS, int WIDTH>
__global__ void __launch_bounds__(THREADS)
    finish(bf16 const* x, float const* partial, float const* base, float const* scale, bf16 const* norm, bf16* a, float* post, float* comb, int slices,
           int width, int iterations, float hc_eps, float rms_eps) {
  constexpr int OUTPUTS = (2 + STREAMS) * STREAMS, PAIRS = STREAMS * STREAMS;
  extern __shared__ __align__(16) unsigned char dynamic[];
  __shared__ float logits[OUTPUTS + 1], scratch[THREADS / LANES];
  int64_t const t = blockIdx.x;
  int const i = static_cast<int>(threadIdx.x);
  add_slices<OUTPUTS>(partial + t * slices * (OUTPUTS + 1), slices, STREAMS * width, rms_eps, logits);
  // post[n] = 2·sigmoid(q[N+n]·scale[1] + base[N+n])
  if (i < STREAMS) post[t * STREAMS + i] = 2.0f * sigmoid(logits[STREAMS + i] * scale[1] + base[STREAMS + i]);
  // C = softmax over j of q[2N+iN+j]·scale[2] + base[2N+iN+j], plus hc_eps; then Sinkhorn
  if (i < PAIRS) {
    float const c = logits[2 * STREAMS + i] * scale[2] + base[2 * STREAMS + i];
    comb[t * PAIRS + i] = sinkhorn<STREAMS>(c, iterations, hc_eps);
  }
  // a = rms(Σ_n pre[n]·x[n], norm)
  float pre[STREAMS];
#pragma unroll
  for (int n = 0; n < STREAMS; ++n) pre[n] = sigmoid(logits[n] * scale[0] + base[n]) + hc_eps;
  gated_norm<STREAMS, WIDTH, THREADS>(x + t * STREAMS * width, pre, norm, a + t * width, width, rms_eps, reinterpret_cast<bf16*>(dynamic), scratch);
}

}  // namespace ds4::hc_pre
