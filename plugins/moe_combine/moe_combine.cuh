// moe_combine: the routed sum and the shared expert -> one bf16 row
//
// Maths     y = bf16(partial + shared); reference: ds4export/ops/moe_combine.py
// Shapes    partial [n] f32, shared [n] bf16 -> y [n] bf16, n = B·T·D       Layout  flat, any alignment of bf16
// Roofline  8 B and 1 flop per element: bandwidth; Flash (D 4096): 32 KB per token
// Tiling    grid over elements | one element per thread and step, neighbours coalesce | no shared memory, no barrier
// Numerics  one addition, one rounding: exact                               Limits  n >= 0
// Measured  on no GPU; run on the host
#pragma once
#include "common/vector.cuh"

namespace ds4::moe_combine {

constexpr int THREADS = 256;

__global__ void __launch_bounds__(THREADS) combine(float const* partial, bf16 const* shared, bf16* y, int64_t num) {
  int64_t const step = int64_t{gridDim.x} * THREADS;
  for (int64_t i = int64_t{blockIdx.x} * THREADS + threadIdx.x; i < num; i += step) {
    y[i] = bf16_from(partial[i] + float_from(shared[i]));
  }
}

}  // namespace ds4::moe_combine
