// A8(128): what a linear with quantised activations multiplies, e4m3 code times power-of-two scale, which is exact in bf16.
//
// Maths     scale = 2^ceil(log2(max(|x|, 1e-4) / 448)) per 128 columns, x -> e4m3(x / scale)·scale; the ceiling by the bits of
//           float32(amax·float32(1/448)), as the released code, equal to the exact one for every bf16
#pragma once
#include "common/tensor_core.cuh"
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

// The biased exponent of a block of 128 that the lanes of a warp bring, four values each.
__device__ inline int a8_exponent(float const (&value)[A8_PER_LANE]) {
  float largest = fmaxf(fmaxf(fabsf(value[0]), fabsf(value[1])), fmaxf(fabsf(value[2]), fabsf(value[3])));
#pragma unroll
  for (int step = LANES / 2; step; step /= 2) largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, step));
  return a8_exponent(largest);
}
// The block's scale, NaN where a value is infinite, as in the released code; and what values are multiplied by.
__device__ inline float a8_power(int exponent) {
  return __uint_as_float(exponent == 255 ? 0x7fc00000u : static_cast<uint32_t>(exponent) << 23);
}
__device__ inline float a8_inverse(int exponent) { return __uint_as_float(static_cast<uint32_t>(254 - exponent) << 23); }

__device__ inline uint32_t bf16_pair(float low, float high) {
  __nv_bfloat162 const pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<uint32_t const*>(&pair);
}

// Code times scale as bf16, in the lane's place of the block `to`. `for_fp4`: every eight as 0 4 1 5 2 6 3 7, the order of Fp4Weight.
template <bool for_fp4>
__device__ inline void put_a8_values(float const (&value)[A8_PER_LANE], bf16* to) {
  int const exponent = a8_exponent(value), lane = static_cast<int>(threadIdx.x) % LANES;
  float const scale = a8_power(exponent), inverse = a8_inverse(exponent);
  auto const made = [&](int i) { return e4m3_rounded(value[i] * inverse) * scale; };
  uint32_t low = bf16_pair(made(0), made(1)), high = bf16_pair(made(2), made(3));
  if constexpr (for_fp4) {
    bool const upper = lane % 2;  // holds columns 4 to 7 of its eight
    uint32_t const other = __shfl_xor_sync(0xffffffffu, upper ? low : high, 1);
    uint32_t const a = upper ? other : low, b = upper ? high : other;
    low = __byte_perm(a, b, 0x5410), high = __byte_perm(a, b, 0x7632);
  }
  reinterpret_cast<uint2*>(to)[lane] = {low, high};
}

// The e4m3 form of a row keeps the strides of its bf16: of the 256 bytes of a block, 128 are codes, the next four the scale as
// float32, times 2^-32 so that its product with any weight scale is finite. So a row may be quantised in place, block by block.
constexpr float A8_UNSCALED = 0x1p32f;
__device__ inline uint4 const* a8_codes(bf16 const* row, int block) { return reinterpret_cast<uint4 const*>(row + block * A8_BLOCK); }
__device__ inline float const* a8_scale(bf16 const* row, int block) {
  return reinterpret_cast<float const*>(row + block * A8_BLOCK + A8_BLOCK / 2);
}

// Two values of at most 448 to the nearest codes, ties to even, NaN to 0x7f: as e4m3_rounded.
__device__ inline uint32_t e4m3_pair(float low, float high) {
  uint16_t codes;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(codes) : "f"(high), "f"(low));
  return codes;
}

// Codes and scale of the block `to`, which may be where the values stood. `for_fp4`: the eights of lane c of a quad, one of each 32
// columns, are neighbours, each as 0 2 4 6 1 3 5 7, the order of tile_e4m3.cuh.
template <bool for_fp4>
__device__ inline void put_a8_codes(float const (&value)[A8_PER_LANE], bf16* to) {
  int const exponent = a8_exponent(value), lane = static_cast<int>(threadIdx.x) % LANES;
  float const inverse = a8_inverse(exponent);
  uint32_t codes = e4m3_pair(value[0] * inverse, value[1] * inverse) | e4m3_pair(value[2] * inverse, value[3] * inverse) << 16;
  int place = lane;
  if constexpr (for_fp4) {
    int const eight = lane / 2;
    uint32_t const other = __shfl_xor_sync(0xffffffffu, codes, 1);
    codes = lane % 2 ? __byte_perm(other, codes, 0x7531) : __byte_perm(codes, other, 0x6420);
    place = eight % 4 * 8 + eight / 4 * 2 + lane % 2;
  }
  __syncwarp();  // the values have been read
  reinterpret_cast<uint32_t*>(to)[place] = codes;
  if (lane == 0) reinterpret_cast<float*>(to)[A8_BLOCK / 4] = a8_power(exponent) * (1 / A8_UNSCALED);
}

// One block of a row: four neighbours of each lane -> the block at `to`, zeros beyond the columns. `for_tiles`: tile_product.cuh
// reads it, in the form of this architecture; otherwise bf16.
template <bool for_fp4>
__device__ inline void quantise_block(bf16 const* from, int column, int columns, bf16* to, bool for_tiles) {
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
  if constexpr (E4M3_MMA) {
    if (for_tiles) return put_a8_codes<for_fp4>(value, to + column);
  }
  put_a8_values<for_fp4>(value, to + column);
}

constexpr int QUANTISE_THREADS = 128;

// Rows [num, columns] -> [num, padded], a warp per block of 128, in the order of the grid.
template <bool for_fp4>
__device__ inline void quantise_rows(bf16 const* x, bf16* out, int64_t num_rows, int columns, int padded, int64_t first_warp,
                                     int64_t num_warps, bool for_tiles) {
  int const blocks = padded / A8_BLOCK;
  for (int64_t i = first_warp; i < num_rows * blocks; i += num_warps) {
    int64_t const row = i / blocks;
    quantise_block<for_fp4>(x + row * columns, static_cast<int>(i % blocks) * A8_BLOCK, columns, out + row * padded, for_tiles);
  }
}

}  // namespace ds4
