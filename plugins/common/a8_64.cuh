// A8(64): the e4m3 round trip of cache rows, a power-of-two scale per 64 dims that are not roped, as `rounded_nope` of
// ds4export/ops/_numerics.py.
//
// Maths     as A8(128) of a8.cuh with blocks of 64; a last block that the roped dims cut short has the scale of its own values
// Tiling    lanes hold PER_LANE neighbours, 64 / PER_LANE lanes a block, a warp PER_LANE / 2 blocks: of 2 per lane one, of 8 four
// Limits    PER_LANE a power of two from 2 to 32; values exact in bf16; all lanes of the warp take part
#pragma once
#include "common/a8.cuh"

namespace ds4 {

constexpr int KV_BLOCK = 64;

// The first `num` values of this lane take part; the others (roped, or beyond the row) neither count nor change. `num` may be
// negative or more than there are, so that it can be a difference of columns.
template <int PER_LANE>
__device__ inline void a8_64_round_trip(float (&value)[PER_LANE], int num = PER_LANE) {
  static_assert(PER_LANE > 1 && PER_LANE <= LANES && (PER_LANE & (PER_LANE - 1)) == 0, "whole blocks in a warp");
  float largest = 0;
#pragma unroll
  for (int k = 0; k < PER_LANE; ++k) largest = fmaxf(largest, k < num ? fabsf(value[k]) : 0.0f);
#pragma unroll
  for (int step = KV_BLOCK / PER_LANE / 2; step; step /= 2) largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, step));
  int const exponent = a8_exponent(largest);
  float const scale = __uint_as_float(static_cast<uint32_t>(exponent) << 23);
  float const inverse = __uint_as_float(static_cast<uint32_t>(254 - exponent) << 23);
#pragma unroll
  for (int k = 0; k < PER_LANE; ++k) value[k] = k < num ? e4m3_rounded(value[k] * inverse) * scale : value[k];
}

}  // namespace ds4
