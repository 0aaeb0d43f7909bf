// bf16 values in registers, and loads that take as many of them as an address allows.
#pragma once
#include <cuda_bf16.h>

#include <cstdint>

namespace ds4 {

using bf16 = __nv_bfloat16;

__device__ inline float float_from(bf16 value) { return __bfloat162float(value); }
__device__ inline bf16 bf16_from(float value) { return __float2bfloat16_rn(value); }

// 16 bytes of bf16, moved as one.
struct alignas(16) Eight {
  bf16 value[8];
};

constexpr int LANES = 32;

// The sum over the lanes of a warp, in every lane. The order is a tree, the same on every run.
__device__ inline float warp_sum(float value) {
  for (int step = LANES / 2; step; step /= 2) value += __shfl_xor_sync(0xffffffffu, value, step);
  return value;
}

}  // namespace ds4
