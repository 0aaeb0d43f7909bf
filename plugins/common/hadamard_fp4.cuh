// Index queries and keys: Hadamard transform times DIM^-0.5, bf16, FP4 round trip, as `hadamard_fp4` of ds4export/ops/_numerics.py.
//
// Maths     y = x·H·DIM^-0.5 with H[a, b] = (-1)^popcount(a & b), rounded to bf16; then per 32 neighbours
//           scale = 2^ceil(log2(max(|y|, 6·2^-126) / 6)), y -> e2m1(y / scale)·scale, ties to even; the result is exact in bf16
// Tiling    lanes hold PER_LANE neighbours; DIM / PER_LANE lanes hold a head, a warp 32·PER_LANE / DIM heads:
//
//             butterfly over dims   | bits below PER_LANE: in the lane | the others: one shuffle per bit and value |
//             largest of 32         | in the lane, then shuffles among 32 / PER_LANE lanes                         |
//
// Numerics  float32, sums in the order of the butterfly: another than a matrix product's, equal while no sum is rounded
// Limits    DIM a power of two from 32 to 32·PER_LANE, PER_LANE a power of two from 2 to 32; all lanes of the warp take part
#pragma once
#include "common/vector.cuh"
#include "common/weight_formats.cuh"

namespace ds4 {

// Biased exponent of the block's scale; `largest` is of the block. 6 is 1.5·2^2: a mantissa above 1.5 takes the next power.
__device__ inline int fp4_exponent(float largest) {
  uint32_t const bits = __float_as_uint(fmaxf(largest, 0x1.8p-124f));
  return static_cast<int>(bits >> 23) - 2 + ((bits & 0x7fffffu) > 0x400000u);
}

// A value of at most 6 to the nearest e2m1, ties to even: steps of 0.5 below 2, of 1 below 4, of 2 from there on.
__device__ inline float e2m1_rounded(float value) {
  float const size = fabsf(value);
  float const step = size < 2 ? 0.5f : size < 4 ? 1.0f : 2.0f, steps_per_unit = size < 2 ? 2.0f : size < 4 ? 1.0f : 0.5f;
  return rintf(value * steps_per_unit) * step;
}

// x @ hadamard(DIM), without the factor.
template <int DIM, int PER_LANE>
__device__ inline void hadamard(float (&value)[PER_LANE]) {
#pragma unroll
  for (int step = 1; step < PER_LANE; step *= 2) {
#pragma unroll
    for (int pair = 0; pair < PER_LANE / 2; ++pair) {
      int const k = pair / step * 2 * step + pair % step;
      float const a = value[k], b = value[k + step];
      value[k] = a + b;
      value[k + step] = a - b;
    }
  }
#pragma unroll
  for (int step = 1; step < DIM / PER_LANE; step *= 2) {
    bool const upper = threadIdx.x & static_cast<unsigned>(step);
#pragma unroll
    for (int k = 0; k < PER_LANE; ++k) value[k] = __shfl_xor_sync(0xffffffffu, value[k], step) + (upper ? -value[k] : value[k]);
  }
}

// A4: the lanes of a warp bring blocks of 32 neighbours.
template <int PER_LANE>
__device__ inline void fp4_round_trip(float (&value)[PER_LANE]) {
  float largest = 0;
#pragma unroll
  for (int k = 0; k < PER_LANE; ++k) largest = fmaxf(largest, fabsf(value[k]));
#pragma unroll
  for (int step = FP4_BLOCK / PER_LANE / 2; step; step /= 2) largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, step));
  int const exponent = fp4_exponent(largest);
  float const scale = __uint_as_float(static_cast<uint32_t>(exponent) << 23);
  float const inverse = __uint_as_float(static_cast<uint32_t>(254 - exponent) << 23);
#pragma unroll
  for (int k = 0; k < PER_LANE; ++k) value[k] = e2m1_rounded(value[k] * inverse) * scale;
}

// Lane l of a warp brings neighbours PER_LANE·l .. of one head of DIM or of several; bf16 values in float32, in and out.
template <int DIM = 128, int PER_LANE>
__device__ inline void hadamard_fp4(float (&value)[PER_LANE]) {
  static_assert(DIM % FP4_BLOCK == 0 && (DIM & (DIM - 1)) == 0 && DIM <= LANES * PER_LANE, "a warp holds whole heads");
  static_assert(PER_LANE > 1 && PER_LANE <= FP4_BLOCK && (PER_LANE & (PER_LANE - 1)) == 0, "a lane holds a part of a block");
  auto const factor = static_cast<float>(1 / sqrt(static_cast<double>(DIM)));
  hadamard<DIM>(value);
#pragma unroll
  for (int k = 0; k < PER_LANE; ++k) value[k] = rounded(value[k] * factor);
  fp4_round_trip(value);
}

}  // namespace ds4
