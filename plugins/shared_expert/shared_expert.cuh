// shared_expert: the expert that every token takes
//
// Maths     h = bf16(silu(min(bf16(w1·a8(x)), limit))·clamp(bf16(w3·a8(x)), ±limit));  y = bf16(w2·a8(h));
//           reference: ds4export/ops/shared_expert.py
// Shapes    x [T, D] bf16, w1, w3 [I, D] and w2 [D, I] e4m3, each with its 128x128 tile scales E8M0 -> y [T, D] bf16
// Layout    rows contiguous; 64-bit offsets; the fast paths want D and I multiples of 16
// Roofline  3·I·D bytes, 6·T·I·D flop: 2·T flop/B; 25 MB (Flash), 66 MB (Pro): memory side up to some 100 tokens
// Tiling    two linears as linear_fp8: Up has the rows of w1 and w3 side by side, a lane's two sums meet in SwiGLU; Down. For one
//           token each is one launch, which quantises its activations itself
// Numerics  as linear_fp8; silu and clamp in float32 on the bf16 products
// Limits    any T, D, I; scales E8M0 of 2^-92 to 2^33; NaN, infinities and weight codes that are NaN as linear_fp8
// Measured  not run on a GPU; run on the host from its PTX
#pragma once
#include "common/linear.cuh"
#include "common/swiglu.cuh"

namespace ds4::shared_expert {

struct Up {
  using Weight = Fp8Weight;
  using Result = bf16;
  static constexpr int MATRICES = 2;
  static constexpr bool QUANTISED = true;
  __device__ static float result(float const (&value)[2], float limit) { return swiglu(rounded(value[0]), rounded(value[1]), limit); }
};

struct Down : PlainLinear<Fp8Weight, bf16, true> {};

}  // namespace ds4::shared_expert
