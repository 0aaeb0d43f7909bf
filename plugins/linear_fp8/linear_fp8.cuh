// linear_fp8: y = x · (e4m3 weight · tile scale)^T, activations rounded by A8(128)
//
// Maths     y[t, o] = bf16(sum_i a8(x)[t, i]·e4m3(weight[o, i])·scale[o/128, i/128]); reference: ds4export/ops/linear_fp8.py
// Shapes    x [T, I] bf16, weight [O, I] e4m3, scale [ceil(O/128), ceil(I/128)] E8M0 -> y [T, O] bf16
// Layout    rows contiguous; 64-bit offsets; the fast paths want I a multiple of 16
// Roofline  O·I bytes and 2·T·O·I flop: 2·T flop/B, memory side up to about 100 tokens; wq_b of Flash (32768 x 1024): 34 MB
// Tiling    T <= 8: one launch, x quantised into shared memory by every block behind its first loads of weights, then
//           stream_rows.cuh (16 rows, columns over 8 warps, codes to registers once). T <= 32: quantise, stream with 4 groups of
//           8 tokens. More: quantise, tile_product.cuh: 128 rows x 128 tokens; sm_89 and sm_12x: 3 stages of 128 columns, codes
//           times codes by e4m3 mma; the others: 4 stages of 64 columns, bf16 mma
// Numerics  a8(x) and e4m3·scale are exact in bf16; bf16 mma, float32 sums of 64 columns added in float32, one rounding at the
//           end: the released order (128 columns) in another grouping. e4m3 mma: sums of 128 columns times their scales, the
//           released order itself; inside an mma the tensor cores of sm_89 add with 13 bits
// Limits    T, I, O >= 0 of any size (I not a multiple of 16: streamed byte by byte); scales E8M0 of 2^-92 to 2^33; scales in
//           float32, which some -Base files have, are refused by their type. A block of x with an infinity is NaN. Codes 0x7f and
//           0xff of the weight, which no checkpoint holds, are NaN in e4m3 mma and 480 elsewhere
// Measured  not run on a GPU; run on the host from its PTX
#pragma once
#include "common/linear.cuh"

namespace ds4::linear_fp8 {

struct Op : PlainLinear<Fp8Weight, bf16, true> {};

}  // namespace ds4::linear_fp8
