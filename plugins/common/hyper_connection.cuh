// What hc_pre and hc_head share: the mixing logits of a token, and its gated, normed sum of streams.
//
// The logits are dot products of all streams of a token with rows of `fn`. At decode there is one token and a megabyte
// of `fn`, so the long axis is cut into slices, one block each; a second kernel adds the slices in order.
#pragma once
#include "common/vector.cuh"

namespace ds4 {

constexpr int MIX_THREADS = 128, MIX_SLICE = 1024, MIX_TOKENS = 4;

// Where token `t` of the output begins in x [B, T, N·D]: itself, or the row that `rows` [B, R] names.
__device__ inline int64_t source_token(int64_t t, int64_t const* rows, int64_t rows_per_batch, int64_t tokens_per_batch) {
  if (!rows) return t;
  int64_t const row = rows[t];
  return t / rows_per_batch * tokens_per_batch + (row > 0 ? row : 0);
}

// partial [tokens, slices, OUTPUTS + 1]: fn·x of a slice for each output, and last the sum of squares.
// Grid [slices, token tiles]. A warp owns every fourth output and reads its row of fn once for MIX_TOKENS tokens.
template <int OUTPUTS, int WIDTH>
__global__ void __launch_bounds__(MIX_THREADS)
    partial_mixes(bf16 const* x, float const* fn, int64_t const* rows, int64_t rows_per_batch, int64_t tokens_per_batch, float* partial,
                  int64_t tokens, int length) {
  constexpr int WARPS = MIX_THREADS / LANES, OWN = (OUTPUTS + WARPS - 1) / WARPS;
  int const warp = static_cast<int>(threadIdx.x) / LANES, lane = static_cast<int>(threadIdx.x) % LANES;
  int const begin = static_cast<int>(blockIdx.x) * MIX_SLICE, end = min(begin + MIX_SLICE, length);
  int64_t const first = int64_t{blockIdx.y} * MIX_TOKENS;
  int const count = static_cast<int>(min(int64_t{MIX_TOKENS}, tokens - first));
  bf16 const* source[MIX_TOKENS];
#pragma unroll
  for (int t = 0; t < MIX_TOKENS; ++t) {
    source[t] = x + source_token(first + min(t, count - 1), rows, rows_per_batch, tokens_per_batch) * length;
  }
  float dot[OWN][MIX_TOKENS] = {}, squares[MIX_TOKENS] = {};
  for (int c = begin + lane * WIDTH; c < end; c += LANES * WIDTH) {
    Pack<bf16, WIDTH> in[MIX_TOKENS];
#pragma unroll
    for (int t = 0; t < MIX_TOKENS; ++t) in[t] = load<WIDTH>(source[t] + c);
#pragma unroll
    for (int o = 0; o < OWN; ++o) {
      int const output = o * WARPS + warp;
      if (output >= OUTPUTS) break;
      auto const factor = load<WIDTH>(fn + int64_t{output} * length + c);
#pragma unroll
      for (int k = 0; k < WIDTH; ++k) {
#pragma unroll
        for (int t = 0; t < MIX_TOKENS; ++t) dot[o][t] += factor.value[k] * float_from(in[t].value[k]);
      }
    }
    if (warp == 0) {
#pragma unroll
      for (int k = 0; k < WIDTH; ++k) {
#pragma unroll
        for (int t = 0; t < MIX_TOKENS; ++t) squares[t] += float_from(in[t].value[k]) * float_from(in[t].value[k]);
      }
    }
  }
#pragma unroll
  for (int t = 0; t < MIX_TOKENS; ++t) {
    if (t >= count) break;
    float* const out = partial + ((first + t) * gridDim.x + blockIdx.x) * (OUTPUTS + 1);
#pragma unroll
    for (int o = 0; o < OWN; ++o) {
      int const output = o * WARPS + warp;
      float const sum = warp_sum(dot[o][t]);
      if (lane == 0 && output < OUTPUTS) out[output] = sum;
    }
    float const sum = warp_sum(squares[t]);
    if (lane == 0 && warp == 0) out[OUTPUTS] = sum;
  }
}

// The logit of each output of one token, in `logits`: slices added in order. Called by a whole block; ends in a barrier.
template <int OUTPUTS>
__device__ inline void add_slices(float const* partial, int slices, int length, float eps, float* logits) {
  if (threadIdx.x <= OUTPUTS) {
    float sum = 0;
    for (int s = 0; s < slices; ++s) sum += partial[s * (OUTPUTS + 1) + threadIdx.x];
    logits[threadIdx.x] = sum;
  }
  __syncthreads();
  float const scale = 1.0f / sqrtf(logits[OUTPUTS] / static_cast<float>(length) + eps);
  __syncthreads();
  if (threadIdx.x < OUTPUTS) logits[threadIdx.x] *= scale;
  __syncthreads();
}

__device__ inline float sigmoid(float value) { return 1.0f / (1.0f + expf(-value)); }

// out = bf16(rms(bf16(Σ_n gate[n]·x[n]), weight)) of one token by one block; `sums` is room for its D values.
template <int STREAMS, int WIDTH, int THREADS>
__device__ inline void gated_norm(bf16 const* x, float const (&gate)[STREAMS], bf16 const* weight, bf16* out, int width, float eps, bf16* sums,
                                  float* scratch) {
  float squares = 0;
  for (int c = static_cast<int>(threadIdx.x) * WIDTH; c < width; c += THREADS * WIDTH) {
    Pack<bf16, WIDTH> in[STREAMS], sum;
#pragma unroll
    for (int n = 0; n < STREAMS; ++n) in[n] = load<WIDTH>(x + n * width + c);
#pragma unroll
    for (int k = 0; k < WIDTH; ++k) {
      float value = 0;
#pragma unroll
      for (int n = 0; n < STREAMS; ++n) value = __fadd_rn(value, __fmul_rn(gate[n], float_from(in[n].value[k])));
      sum.value[k] = bf16_from(value);
      squares += float_from(sum.value[k]) * float_from(sum.value[k]);
    }
    store<WIDTH>(sums + c, sum);  // read again by the same thread only
  }
  float const scale = 1.0f / sqrtf(block_sum<THREADS>(squares, scratch) / static_cast<float>(width) + eps);
  for (int c = static_cast<int>(threadIdx.x) * WIDTH; c < width; c += THREADS * WIDTH) {
    auto pack = load<WIDTH>(sums + c);
    auto const gain = load<WIDTH>(weight + c);
#pragma unroll
    for (int k = 0; k < WIDTH; ++k) pack.value[k] = bf16_from(float_from(pack.value[k]) * scale * float_from(gain.value[k]));
    store<WIDTH>(out + c, pack);
  }
}

}  // namespace ds4
