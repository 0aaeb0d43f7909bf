// grouped_linear: the first half of the output projection, one matrix per group of heads
//
// Maths     y[t, g·O + o] = bf16(sum_i x[t, g·I + i]·bf16(e4m3(weight[g·O + o, i])·scale)); reference: ds4export/ops/grouped_linear.py
// Shapes    x [T, G·I] bf16, weight [G·O, I] e4m3, scale [ceil(G·O/128), ceil(I/128)] E8M0 -> y [T, G·O] bf16
// Layout    rows contiguous; 64-bit offsets; the fast paths want I a multiple of 16
// Roofline  G·O·I bytes and 2·T·G·O·I flop: 2·T flop/B, memory side up to some 100 tokens; Flash (8 x 1024 x 4096): 34 MB
// Tiling    as linear_fp8 with the group as the grid's third axis; activations are not quantised. Scale tiles count rows over all
//           groups
// Numerics  e4m3·scale is exact in bf16; bf16 mma, float32 sums of 64 columns added in float32, one rounding at the end
// Limits    any T, G, O, I (I not a multiple of 16: streamed byte by byte); scales E8M0 of 2^-92 to 2^33; G <= 65535
// Measured  not run on a GPU; run on the host from its PTX
#pragma once
#include "common/linear.cuh"

namespace ds4::grouped_linear {

struct Op : PlainLinear<Fp8Weight, bf16, false> {};

}  // namespace ds4::grouped_linear
