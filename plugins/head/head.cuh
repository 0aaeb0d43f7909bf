// head: hidden states -> logits, float32
//
// Maths     logits[r, v] = sum_i h[r, i]·weight[v, i]; reference: ds4export/ops/head.py
// Shapes    h [R, D] bf16, weight [V, D] bf16 -> logits [R, V] f32      Layout  rows contiguous; 64-bit offsets
// Roofline  2·V·D bytes once for up to 32 rows: 1.06 GB (Flash), 1.85 GB (Pro); R flop/B: memory side
// Tiling    as linear_bf16; 8080 blocks of 16 rows at V 129,280
// Numerics  products of bf16 are exact in float32; mma sums of 64 columns added in float32, so that what mma truncates inside
//           does not add up over D. No rounding at the end
// Limits    any R, D, V; D not a multiple of 8: streamed value by value
// Measured  not run on a GPU; run on the host from its PTX
#pragma once
#include "common/linear.cuh"

namespace ds4::head {

struct Op : PlainLinear<Bf16Weight, float, false> {};

}  // namespace ds4::head
