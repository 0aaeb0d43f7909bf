// Stored weights (bf16, e4m3 with 128x128 tile scales, packed e2m1 with a scale per 32 columns) as bf16 operands of mma.
//
// A product goes through a row in chunks of CHUNK columns; lane c of the quad that holds the row owns PER_LANE neighbours:
//
//   columns  | lane 0: PER_LANE | lane 1 | lane 2 | lane 3 |      and feeds four of them to each mma step
//
// mma does not care which column is which while both operands agree, so a lane's columns come in one wide load and need no
// exchange. Codes widen to bf16 by bits: sign and magnitude move to the place where their exponent reads as 2^-120 (e4m3) or
// 2^-126 (e2m1) of the value, subnormals included, and one exact multiplication brings the scale, times 2^-32 so that it fits:
// `UNSCALED` undoes it on the sum. Exact for scales of 2^-92 to 2^33. Larger ones become infinity, smaller ones lose bits below
// 2^-101 of a product. Codes 0x7f and 0xff of e4m3, NaN, which no checkpoint holds, read as 480.
#pragma once
#include <cstdint>

#include "common/vector.cuh"

namespace ds4 {

constexpr int QUAD = 4;
constexpr int WEIGHT_TILE = 128, FP4_BLOCK = 32;

// Rows of one stored matrix. `first_row`: of these rows, in the scale tiles that they share with the rows before them.
struct Matrix {
  uint8_t const* codes;
  uint8_t const* scale;
  int rows, columns, first_row;
};

// Two bf16 of value 2^exponent-127, zero below the range and infinity above.
__device__ inline uint32_t pair_of_powers(int exponent) { return static_cast<uint32_t>(min(max(exponent, 0), 255)) * 0x00800080u; }

__device__ inline uint32_t times(uint32_t pair, uint32_t powers) {
  __nv_bfloat162 const product = __hmul2(*reinterpret_cast<__nv_bfloat162*>(&pair), *reinterpret_cast<__nv_bfloat162*>(&powers));
  return *reinterpret_cast<uint32_t const*>(&product);
}

constexpr uint32_t NAN_SCALE = 255;
// Two bf16 of value 2^(byte - 127), or NaN.
__device__ inline uint32_t pair_of_scale(uint32_t byte) {
  return byte == NAN_SCALE ? 0x7fc07fc0u : byte == 0 ? 0x00400040u : byte * 0x00800080u;
}

// What a lane holds of a row in one chunk.
template <int NUM>
struct Words {
  uint32_t word[NUM];
};

struct Bf16Weight {
  static constexpr int BITS = 16, CHUNK = 64, PER_LANE = CHUNK / QUAD, WORDS = 8;
  static constexpr float UNSCALED = 1;
  __device__ static uint32_t scale_byte(Matrix const&, int, int) { return 0; }
  __device__ static uint32_t powers(uint32_t) { return 0; }
  // The two pairs of a step: operands of one row.
  __device__ static uint2 pairs(Words<WORDS> const& held, uint32_t, int step) { return {held.word[2 * step], held.word[2 * step + 1]}; }
};

struct Fp8Weight {
  static constexpr int BITS = 8, CHUNK = 64, PER_LANE = CHUNK / QUAD, WORDS = 4;
  static constexpr float UNSCALED = 0x1p32f;
  __device__ static uint32_t scale_byte(Matrix const& m, int row, int column) {
    int64_t const tiles = (m.columns + WEIGHT_TILE - 1) / WEIGHT_TILE;
    return m.scale[(m.first_row + row) / WEIGHT_TILE * tiles + column / WEIGHT_TILE];
  }
  __device__ static uint32_t powers(uint32_t byte) { return byte == 255 ? 0x7fc07fc0u : pair_of_powers(static_cast<int>(byte) + 120 - 32); }
  __device__ static uint32_t widened(uint32_t word, uint32_t powers, uint32_t bytes) {
    uint32_t const high = __byte_perm(word, 0, bytes);  // a code in the upper byte of each half
    return times((high & 0x80008000u) | (high & 0x7f007f00u) >> 4, powers);
  }
  __device__ static uint2 pairs(Words<WORDS> const& held, uint32_t powers, int step) {
    return {widened(held.word[step], powers, 0x1404), widened(held.word[step], powers, 0x3424)};
  }
};

// A word of eight codes widens to the pairs (0, 4), (1, 5), (2, 6), (3, 7): activations are stored in that order.
struct Fp4Weight {
  static constexpr int BITS = 4, CHUNK = 128, PER_LANE = CHUNK / QUAD, WORDS = 4;
  static constexpr float UNSCALED = 0x1p32f;
  static_assert(PER_LANE == FP4_BLOCK, "a lane holds one scale block");
  __device__ static uint32_t scale_byte(Matrix const& m, int row, int column) {
    return m.scale[int64_t{row} * (m.columns / FP4_BLOCK) + column / FP4_BLOCK];
  }
  __device__ static uint32_t powers(uint32_t byte) { return byte == 255 ? 0x7fc07fc0u : pair_of_powers(static_cast<int>(byte) + 126 - 32); }
  __device__ static uint32_t widened(uint32_t word, uint32_t powers, int i) {
    uint32_t const high = word << (12 - 4 * i);  // code i and code i + 4 in the upper nibble of each half
    return times((high & 0x80008000u) | (high >> 6 & 0x01c001c0u), powers);
  }
  __device__ static uint2 pairs(Words<WORDS> const& held, uint32_t powers, int step) {
    int const first = step % 2 * 2;
    return {widened(held.word[step / 2], powers, first), widened(held.word[step / 2], powers, first + 1)};
  }
};

template <class W>
__device__ inline uint8_t const* row_of(Matrix const& m, int row) {
  return m.codes + int64_t{row} * (int64_t{m.columns} * W::BITS / 8);
}

// A lane's part of a row from global memory, zeros where the matrix ends.
template <class W, bool aligned>
__device__ inline Words<W::WORDS> words_of(Matrix const& m, int row, int column) {
  constexpr int PER_PIECE = 128 / W::BITS;
  Words<W::WORDS> out = {};
  if (row >= m.rows) return out;
  uint8_t const* const from = row_of<W>(m, row) + int64_t{column} * W::BITS / 8;
  if constexpr (aligned) {
#pragma unroll
    for (int i = 0; i < W::WORDS / 4; ++i) {
      if (column + i * PER_PIECE >= m.columns) continue;
      uint4 const v = __ldcs(reinterpret_cast<uint4 const*>(from) + i);
      out.word[4 * i] = v.x, out.word[4 * i + 1] = v.y, out.word[4 * i + 2] = v.z, out.word[4 * i + 3] = v.w;
    }
  } else {
    constexpr int BYTES = W::BITS / 8, PER_WORD = 4 / BYTES;
#pragma unroll
    for (int i = 0; i < W::PER_LANE; ++i) {
      if (column + i >= m.columns) continue;
      uint32_t const code = BYTES == 1 ? from[i] : reinterpret_cast<uint16_t const*>(from)[i];
      out.word[i / PER_WORD] |= code << (i % PER_WORD * W::BITS);
    }
  }
  return out;
}

template <class W>
__device__ inline uint32_t scale_byte_of(Matrix const& m, int row, int column) {
  return row < m.rows && column < m.columns ? W::scale_byte(m, row, column) : 0;
}

// Eight activations of a token, zeros beyond its columns or where there is no token.
template <bool aligned>
__device__ inline Words<4> activations(bf16 const* row, int column, int columns) {
  Words<4> out = {};
  if (!row) return out;
  if constexpr (aligned) {
    if (column < columns) {
      uint4 const v = *reinterpret_cast<uint4 const*>(row + column);
      out = {v.x, v.y, v.z, v.w};
    }
  } else {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      if (column + i < columns) out.word[i / 2] |= uint32_t{reinterpret_cast<uint16_t const*>(row)[column + i]} << (i % 2 * 16);
    }
  }
  return out;
}

}  // namespace ds4
