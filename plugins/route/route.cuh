// route: the experts of each token and their weights, by score (route_scores) or by token id (route_hash)
//
// Maths     s = sqrt(softplus(gate·x));  indices = the k largest of s + bias, lowest index first among equals, or table[id];
//           weights = s[indices] / sum of them · scale; reference: ds4export/ops/_route.py, route_scores.py, route_hash.py
// Shapes    x [T, D] bf16, gate [E, D] bf16, bias [E] f32 | ids int64 [T], table int64 [V, k] -> weights f32, indices int64 [T, k]
// Layout    rows contiguous; 64-bit offsets
// Roofline  scores: 2·E·D bytes, 2.1 MB (Flash), 5.5 MB (Pro); hash: only the k rows of a token, 49 KB (Flash): memory side
// Tiling    scores: gate·x as linear_bf16 with float32 results in the workspace, then select: a warp per token, k rounds over E / 32
//           values a lane, each the largest key behind the last chosen. hash: a block per token, a warp per expert, no workspace
// Numerics  products of bf16 are exact in float32. scores: mma sums of 64 columns added in float32; hash: float32, a tree over the
//           lanes. softplus as max(z, 0) + log1p(exp(-|z|)). NaN sorts above all, as torch sorts it
// Limits    any T, D, E, V; k <= 32, k <= E; an id or a table entry out of range: weight 0, and index -1 for an id
// Measured  not run on a GPU; run on the host from its PTX
#pragma once
#include "common/linear.cuh"

namespace ds4::route {

constexpr int MOST_PLACES = 32, SELECT_THREADS = 128, HASH_THREADS = 256;
constexpr unsigned ALL = 0xffffffffu;

struct Gate : PlainLinear<Bf16Weight, float, false> {};

// sqrt(softplus(z)), without overflow of exp and without loss of small values
__device__ inline float score(float z) { return sqrtf((z > 0 ? z : z < 0 ? 0 : z) + log1pf(expf(-fabsf(z)))); }

// Larger values have larger keys; the zeros are equal, NaN is above infinity.
__device__ inline uint32_t key_of(float value) {
  uint32_t const bits = __float_as_uint(value + 0.0f);
  return value != value ? 0xfffffffeu : bits >> 31 ? ~bits : bits | 0x80000000u;
}

// Lanes 0 .. k-1 bring a score each.
__device__ inline void put_weights(float s, int k, float scale, float* weights) {
  int const lane = static_cast<int>(threadIdx.x) % LANES;
  float const sum = warp_sum(lane < k ? s : 0.0f);
  if (lane < k) weights[lane] = s / sum * scale;
}

// Grid: tokens / 4. z [T, E]: gate·x
__global__ void __launch_bounds__(SELECT_THREADS)
    select(float const* z, float const* bias, float* weights, int64_t* indices, int64_t num_tokens, int num_experts, int k, float scale) {
  int const lane = static_cast<int>(threadIdx.x) % LANES;
  int64_t const token = int64_t{blockIdx.x} * (SELECT_THREADS / LANES) + threadIdx.x / LANES;
  if (token >= num_tokens) return;
  float const* const own = z + token * num_experts;
  int64_t bound = INT64_MAX;  // (key, index from the end) as one number; candidates lie below the last chosen
  float chosen = 0;
  for (int i = 0; i < k; ++i) {
    int64_t best = -1;
    for (int e = lane; e < num_experts; e += LANES) {
      int64_t const rank = static_cast<int64_t>(key_of(score(own[e]) + bias[e])) << 31 | (0x7fffffff - e);
      if (rank < bound) best = rank > best ? rank : best;
    }
#pragma unroll
    for (int step = LANES / 2; step; step /= 2) {
      int64_t const other = __shfl_xor_sync(ALL, best, step);
      best = other > best ? other : best;
    }
    bound = best;
    int const expert = 0x7fffffff - static_cast<int>(best & 0x7fffffff);
    if (lane == i) {
      chosen = score(own[expert]);
      indices[token * k + i] = expert;
    }
  }
  put_weights(chosen, k, scale, weights + token * k);
}

// Grid: tokens.
template <bool aligned>
__global__ void __launch_bounds__(HASH_THREADS)
    hash(bf16 const* x, bf16 const* gate, int64_t const* ids, int64_t const* table, float* weights, int64_t* indices, int num_columns,
         int num_experts, int64_t num_ids, int k, float scale) {
  __shared__ float scores[MOST_PLACES];
  int const lane = static_cast<int>(threadIdx.x) % LANES, warp = static_cast<int>(threadIdx.x) / LANES;
  int64_t const token = blockIdx.x, id = ids[token];
  bool const known = id >= 0 && id < num_ids;
  bf16 const* const own = x + token * num_columns;
  for (int place = warp; place < k; place += HASH_THREADS / LANES) {
    int64_t const expert = known ? table[id * k + place] : -1;
    bool const is = expert >= 0 && expert < num_experts;
    bf16 const* const row = gate + (is ? expert : 0) * num_columns;
    constexpr int WIDTH = aligned ? PIECE : 1;
    float sum = 0;
    for (int column = lane * WIDTH; is && column < num_columns; column += LANES * WIDTH) {
      auto const a = load<WIDTH>(own + column), b = load<WIDTH>(row + column);
#pragma unroll
      for (int i = 0; i < WIDTH; ++i) sum = fmaf(float_from(a.value[i]), float_from(b.value[i]), sum);
    }
    sum = warp_sum(sum);
    if (lane == 0) {
      scores[place] = is ? score(sum) : 0.0f;
      indices[token * k + place] = expert;
    }
  }
  __syncthreads();  // the scores of all places are written
  if (warp == 0 && known) put_weights(lane < k ? scores[lane] : 0.0f, k, scale, weights + token * k);
  if (warp == 0 && !known && lane < k) weights[token * k + lane] = 0;
}

}  // namespace ds4::route
