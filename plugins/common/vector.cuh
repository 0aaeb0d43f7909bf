// bf16 values in registers, packs of eight that move as one, and sums over a warp or a block.
#pragma once
#include <cuda_bf16.h>

#include <cstdint>

namespace ds4 {

using bf16 = __nv_bfloat16;

__device__ inline float float_from(bf16 value) { return __bfloat162float(value); }
__device__ inline bf16 bf16_from(float value) { return __float2bfloat16_rn(value); }
// An intermediate that the released code holds as a bf16 tensor.
__device__ inline float rounded(float value) { return float_from(bf16_from(value)); }

// WIDTH neighbours of a row: 8 bf16 are 16 bytes and move as one; 1 is for rows of any length.
template <class T, int WIDTH>
struct alignas(sizeof(T) * WIDTH < 16 ? sizeof(T) * WIDTH : 16) Pack {
  T value[WIDTH];
};
template <int WIDTH, class T>
__device__ inline Pack<T, WIDTH> load(T const* from) {
  return *reinterpret_cast<Pack<T, WIDTH> const*>(from);
}
template <int WIDTH, class T>
__device__ inline void store(T* to, Pack<T, WIDTH> const& pack) {
  *reinterpret_cast<Pack<T, WIDTH>*>(to) = pack;
}

constexpr int LANES = 32;

// The sum over the lanes of a warp, in every lane. The order is a tree, the same on every run.
__device__ inline float warp_sum(float value) {
#pragma unroll
  for (int step = LANES / 2; step; step /= 2) value += __shfl_xor_sync(0xffffffffu, value, step);
  return value;
}

// The sum over a block of THREADS, in every thread. `scratch` holds one value per warp and is free again after the
// next barrier.
template <int THREADS>
__device__ inline float block_sum(float value, float* scratch) {
  constexpr int WARPS = THREADS / LANES;
  value = warp_sum(value);
  if (threadIdx.x % LANES == 0) scratch[threadIdx.x / LANES] = value;
  __syncthreads();
  float total = 0;
#pragma unroll
  for (int w = 0; w < WARPS; ++w) total += scratch[w];
  return total;
}

}  // namespace ds4
