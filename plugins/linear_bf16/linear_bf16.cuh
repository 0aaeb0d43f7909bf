// linear_bf16: y = x · weight^T, both bf16
//
// Maths     y[t, o] = bf16(sum_i x[t, i]·weight[o, i]); reference: ds4export/ops/linear_bf16.py
// Shapes    x [T, I] bf16, weight [O, I] bf16 -> y [T, O] bf16
// Layout    rows contiguous; 64-bit offsets; the fast paths want I a multiple of 8
// Roofline  2·O·I bytes and 2·T·O·I flop: T flop/B, memory side up to some 200 tokens; weights_proj of Flash (64 x 4096): 0.5 MB
// Tiling    T <= 8 and T <= 32: stream_rows.cuh (16 rows, columns over 8 warps). More: tile_product.cuh (128 rows x 128 tokens,
//           3 stages of 64 columns)
// Numerics  bf16 mma, float32 sums of 64 columns added in float32, one rounding at the end
// Limits    T, I, O >= 0 of any size; I not a multiple of 8: streamed value by value
// Measured  not run on a GPU; run on the host from its PTX
#pragma once
#include "common/linear.cuh"

namespace ds4::linear_bf16 {

struct Op : PlainLinear<Bf16Weight, bf16, false> {};

}  // namespace ds4::linear_bf16
