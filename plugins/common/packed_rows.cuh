// Packed cache rows: kv rows as e4m3 codes, index keys as e2m1 codes, each with power-of-two scales, to bf16 and back.
//
// Maths     value = code·2^(scale byte - 127); pack: scale byte = 127 + ceil(log2(max(largest, 1e-4) / 448)) of 64 codes, code =
//           e4m3(value / scale); reference: ds4export/ops/_packed.py
// Layout    kv rows begin at multiples of 8 bytes, keys at multiples of 4; num_codes = width - roped dims, a multiple of 8
//
//           kv, d 512   | 448 e4m3 codes | 64 bf16, roped | 7 scales, a block of 64 codes each | 1 zero |     584 bytes
//           key, d 128  | 128 e2m1 codes, the even one in the low nibble  | 4 scales, 32 codes |                68 bytes
//
// Numerics  rows of products code times scale, as kv_row and the compressors make them, come back bit for bit. Widening moves a
//           code's sign and magnitude to where they read as 2^-120 (e4m3) or 2^-126 (e2m1) of it, subnormals included; times
//           2^120 or 2^126 and times the scale is exact. Scale 255 is NaN: a block that held NaN or infinity; code 0x7f reads as 480
// Limits    kv: width and num_codes multiples of 8; keys: width a multiple of 128
#pragma once
#include "common/a8.cuh"
#include "common/tensor_core.cuh"
#include "common/vector.cuh"
#include "common/weight_formats.cuh"

namespace ds4 {

constexpr int KV_SCALE_BLOCK = 64, KEY_SCALE_BLOCK = 32;
constexpr uint32_t NAN_CODE = 0x7f;

__host__ __device__ constexpr int packed_kv_bytes(int width, int num_roped) {
  return (width + num_roped + (width - num_roped + KV_SCALE_BLOCK - 1) / KV_SCALE_BLOCK + 7) / 8 * 8;
}
__host__ __device__ constexpr int packed_key_bytes(int width) { return width / 2 + width / KEY_SCALE_BLOCK; }

// Eight e4m3 codes as bf16.
__device__ inline uint4 widened_e4m3(uint2 codes, uint32_t scale_byte) {
  constexpr uint32_t TWO_TO_120 = 0x7b807b80u;
  uint32_t const scale = pair_of_scale(scale_byte);
  return {times(Fp8Weight::widened(codes.x, TWO_TO_120, 0x1404), scale), times(Fp8Weight::widened(codes.x, TWO_TO_120, 0x3424), scale),
          times(Fp8Weight::widened(codes.y, TWO_TO_120, 0x1404), scale), times(Fp8Weight::widened(codes.y, TWO_TO_120, 0x3424), scale)};
}

// The codes of one byte of eight, low nibble first, as a pair of bf16.
__device__ inline uint32_t widened_e2m1(uint32_t codes, int byte, uint32_t scale) {
  constexpr uint32_t TWO_TO_126 = 0x7e807e80u;
  uint32_t const two = codes >> (8 * byte) & 0xff, apart = (two & 0x0fu) | (two & 0xf0u) << 12;
  return times(times((apart << 12 & 0x80008000u) | (apart << 6 & 0x01c001c0u), TWO_TO_126), scale);
}
__device__ inline uint4 widened_e2m1(uint32_t codes, uint32_t scale_byte) {
  uint32_t const scale = pair_of_scale(scale_byte);
  return {widened_e2m1(codes, 0, scale), widened_e2m1(codes, 1, scale), widened_e2m1(codes, 2, scale), widened_e2m1(codes, 3, scale)};
}

// The widths of a kv row; `num_codes` of its dims are not roped.
struct PackedKv {
  int width, num_codes;

  __device__ int scale_at(int dim) const { return 2 * width - num_codes + dim / KV_SCALE_BLOCK; }
  __device__ int num_bytes() const { return packed_kv_bytes(width, width - num_codes); }

  // Eight neighbours of a row as bf16, `dim` a multiple of 8.
  __device__ uint4 piece(uint8_t const* row, int dim) const {
    if (dim < num_codes) return widened_e4m3(*reinterpret_cast<uint2 const*>(row + dim), row[scale_at(dim)]);
    auto const* const from = reinterpret_cast<uint2 const*>(row + 2 * dim - num_codes);
    return {from[0].x, from[0].y, from[1].x, from[1].y};
  }
};

// The e4m3 code of a bf16 value over its block's scale, which `inverse` divides by.
__device__ inline uint32_t e4m3_code(float value, float inverse) {
  uint32_t const bits = __float_as_uint(e4m3_rounded(value * inverse));
  return (__float_as_uint(__fmul_rn(__uint_as_float(bits & 0x7fffffffu), 0x1p-120f)) >> 20) | (bits >> 24 & 0x80u);
}

// PER_LANE neighbours of a row from `dim` on -> its bytes. The lanes of a warp hold neighbours in their order, the first of them
// a multiple of 64; all of them call, and those beyond the row write nothing.
template <int PER_LANE>
__device__ inline void pack_kv(Pack<bf16, PER_LANE> const& values, int dim, PackedKv shape, uint8_t* row) {
  static_assert(PER_LANE == 4 || PER_LANE == 8);
  bool const coded = dim < shape.num_codes;
  uint32_t largest = 0;  // bits of a magnitude: NaN is above infinity, and that above all others
#pragma unroll
  for (bf16 const v : values.value) largest = max(largest, coded ? __bfloat16_as_ushort(v) & 0x7fffu : 0u);
#pragma unroll
  for (int step = KV_SCALE_BLOCK / PER_LANE / 2; step; step /= 2) largest = max(largest, __shfl_xor_sync(0xffffffffu, largest, step));
  if (dim >= shape.width) return;
  if (!coded) {
    auto* const to = reinterpret_cast<uint2*>(row + 2 * dim - shape.num_codes);
#pragma unroll
    for (int i = 0; i < PER_LANE / 4; ++i) to[i] = reinterpret_cast<uint2 const*>(&values)[i];
  } else {
    bool const finite = largest < 0x7f80u;
    uint32_t const exponent = finite ? static_cast<uint32_t>(a8_exponent(__uint_as_float(largest << 16))) : NAN_SCALE;
    float const inverse = __uint_as_float((254 - min(exponent, 253u)) << 23);
    uint32_t word[PER_LANE / 4] = {};
#pragma unroll
    for (int k = 0; k < PER_LANE; ++k) {
      word[k / 4] |= (finite ? e4m3_code(float_from(values.value[k]), inverse) : NAN_CODE) << (k % 4 * 8);
    }
#pragma unroll
    for (int i = 0; i < PER_LANE / 4; ++i) reinterpret_cast<uint32_t*>(row + dim)[i] = word[i];
    if (dim % KV_SCALE_BLOCK == 0) row[shape.scale_at(dim)] = static_cast<uint8_t>(exponent);
  }
  if (dim) return;
  for (int i = shape.scale_at(shape.num_codes + KV_SCALE_BLOCK - 1); i < shape.num_bytes(); ++i) row[i] = 0;  // the pad
}

}  // namespace ds4
