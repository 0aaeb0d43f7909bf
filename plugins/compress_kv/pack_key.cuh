// pack_key: an index key in the registers of a warp -> its packed row, as `pack_key` of ds4export/ops/_packed.py.
//
// Maths     scale byte = 127 + ceil(log2(max(largest, 6·2^-126) / 6)) of 32 values, code = e2m1(value / scale)
// Layout    common/packed_rows.cuh: 128 codes, the even one in the low nibble, then 4 scales: 68 bytes, a multiple of 4
// Numerics  values that went through fp4_round_trip() come back bit for bit. A block that holds NaN or infinity has scale 255
#pragma once
#include "common/hadamard_fp4.cuh"
#include "common/packed_rows.cuh"

namespace ds4::compress_kv {

// The e2m1 code of a value of at most 6 that is one already: 2^-126 of it has its exponent and mantissa in the three bits from 22 on.
__device__ inline uint32_t e2m1_code(float value) {
  uint32_t const bits = __float_as_uint(value);
  return (__float_as_uint(__fmul_rn(__uint_as_float(bits & 0x7fffffffu), 0x1p-126f)) >> 22) | (bits >> 28 & 8u);
}

// Four neighbours of a key from `dim` on, of which the lanes of a warp bring all 128.
__device__ inline void pack_key(Pack<bf16, 4> const& values, int dim, uint8_t* row) {
  constexpr int WIDTH = 4 * LANES;
  uint32_t largest = 0;  // bits of a magnitude: NaN is above infinity, and that above all others
#pragma unroll
  for (bf16 const v : values.value) largest = max(largest, __bfloat16_as_ushort(v) & 0x7fffu);
#pragma unroll
  for (int step = KEY_SCALE_BLOCK / 4 / 2; step; step /= 2) largest = max(largest, __shfl_xor_sync(0xffffffffu, largest, step));
  bool const finite = largest < 0x7f80u;
  uint32_t const exponent = finite ? static_cast<uint32_t>(fp4_exponent(__uint_as_float(largest << 16))) : NAN_SCALE;
  float const inverse = __uint_as_float((254 - min(exponent, 253u)) << 23);
  uint32_t codes = 0;
#pragma unroll
  for (int k = 0; k < 4; ++k) codes |= (finite ? e2m1_code(e2m1_rounded(float_from(values.value[k]) * inverse)) : NAN_CODE & 7) << (4 * k);
  *reinterpret_cast<uint16_t*>(row + dim / 2) = static_cast<uint16_t>(codes);
  if (dim % KEY_SCALE_BLOCK == 0) row[WIDTH / 2 + dim / KEY_SCALE_BLOCK] = static_cast<uint8_t>(exponent);
}

}  // namespace ds4::compress_kv
