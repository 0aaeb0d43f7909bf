// A8(128): what a linear with quantised activations multiplies, e4m3 code times power-of-two scale, which is exact in bf16.
//
// Maths     scale = 2^ceil(log2(max(|x|, 1e-4) / 448)) per 128 columns, x -> e4m3(x / scale)·scale; the ceiling by the bits of
//           float32(amax·float32(1/448)), as the released code, equal to the exact one for every bf16
#pragma once
#include "common/vector.cuh"

namespace ds4 {

constexpr int A8_BLOCK = 128, A8_PER_LANE = A8_BLOCK / LANES;

inline int padded_to_a8(int64_t columns) { return static_cast<int>((columns + A8_BLOCK - 1) / A8_BLOCK * A8_BLOCK); }

// Biased exponent of the block's scale; `largest` is of the block.
__device__ inline int a8_exponent(float largest) {
  uint32_t const ratio = __float_as_uint(__fmul_rn(fmaxf(largest, 1e-4f), 1.0f / 448.0f));
  return static_cast<int>(ratio >> 23) + ((ratio & 0x7fffffu) != 0);
}

// A value of at most 448 to the nearest e4m3, ties to even: three mantissa bits from 2^-6 on, steps of 2^-9 below. NaN stays NaN:
// the carry of a rounding would turn one whose bits are all set into zero.
__device__ inline float e4m3_rounded(float value) {
  constexpr float STEPS_OF_2_TO_MINUS_9 = 24576.0f;
  uint32_t const bits = __float_as_uint(value);
  float const normal = __uint_as_float((bits + 0x7ffffu + (bits >> 20 & 1)) & 0xfff00000u);
  float const subnormal = __fsub_rn(__fadd_rn(value, STEPS_OF_2_TO_MINUS_9), STEPS_OF_2_TO_MINUS_9);
  return fabsf(value) < 0x1p-6f ? subnormal : value == value ? normal : value;
}

// The lanes of a warp bring one block of 128, four neighbours each.
__device__ inline void a8_round_trip(float (&value)[A8_PER_LANE]) {
  float largest = fmaxf(fmaxf(fabsf(value[0]), fabsf(value[1])), fmaxf(fabsf(value[2]), fabsf(value[3])));
#pragma unroll
  for (int step = LANES / 2; step; step /= 2) largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, step));
  int const exponent = a8_exponent(largest);
  float const scale = __uint_as_float(static_cast<uint32_t>(exponent) << 23);
  float const inverse = __uint_as_float(static_cast<uint32_t>(254 - exponent) << 23);
#pragma unroll
  for (float& v : value) v = e4m3_rounded(v * inverse) * scale;
}

__device__ inline uint32_t bf16_pair(float low, float high) {
  __nv_bfloat162 const pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<uint32_t const*>(&pair);
}

// One block of a row: four neighbours of each lane -> bf16 at `to`, zeros beyond the columns. `for_fp4`: every eight stored as
// 0 4 1 5 2 6 3 7, the order of Fp4Weight.
template <bool for_fp4>
__device__ inline void quantise_block(bf16 const* from, int column, int columns, bf16* to) {
  int const lane = static_cast<int>(threadIdx.x) % LANES, first = column + lane * A8_PER_LANE;
  float value[A8_PER_LANE] = {};
  if (columns % A8_PER_LANE == 0) {
    if (first < columns) {
      auto const four = load<A8_PER_LANE>(from + first);
#pragma unroll
      for (int i = 0; i < A8_PER_LANE; ++i) value[i] = float_from(four.value[i]);
    }
  } else {
#pragma unroll
    for (int i = 0; i < A8_PER_LANE; ++i) {
      if (first + i < columns) value[i] = float_from(from[first + i]);
    }
  }
  a8_round_trip(value);
  uint32_t low = bf16_pair(value[0], value[1]), high = bf16_pair(value[2], value[3]);
  if constexpr (for_fp4) {
    bool const upper = lane % 2;  // holds columns 4 to 7 of its eight
    uint32_t const other = __shfl_xor_sync(0xffffffffu, upper ? low : high, 1);
    uint32_t const a = upper ? other : low, b = upper ? high : other;
    low = __byte_perm(a, b, 0x5410), high = __byte_perm(a, b, 0x7632);
  }
  reinterpret_cast<uint2*>(to + column)[lane] = {low, high};
}

constexpr int QUANTISE_THREADS = 128;

// Rows [num, columns] -> [num, padded], a warp per block of 128, in the order of the grid.
template <bool for_fp4>
__device__ inline void quantise_rows(bf16 const* x, bf16* out, int64_t num_rows, int columns, int padded, int64_t first_warp, int64_t num_warps) {
  int const blocks = padded / A8_BLOCK;
  for (int64_t i = first_warp; i < num_rows * blocks; i += num_warps) {
    int64_t const row = i / blocks;
    quantise_block<for_fp4>(x + row * columns, static_cast<int>(i % blocks) * A8_BLOCK, columns, out + row * padded);
  }
}

}  // namespace ds4
