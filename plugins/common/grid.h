// How many blocks a launch gets, and whether rows may be moved in packs.
#pragma once
#include <algorithm>
#include <cstdint>
#include <initializer_list>

#include "tensor.h"

namespace ds4 {

constexpr int64_t BLOCKS_PER_MULTIPROCESSOR = 16;

inline int64_t multiprocessors() {
  int device = 0, count = 1;
  if (cudaGetDevice(&device) != cudaSuccess) return count;
  if (cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device) != cudaSuccess) return 1;
  return count;
}

// Enough blocks for every item, and no more than fill the GPU several times: kernels step by the grid.
inline unsigned blocks_for(int64_t num_items, int64_t per_block) {
  return static_cast<unsigned>(std::min((num_items + per_block - 1) / per_block, BLOCKS_PER_MULTIPROCESSOR * multiprocessors()));
}

constexpr int PACK = 8;

// Rows of `width` elements that begin at the tensors' data can be read eight elements at a time.
inline bool packs(int64_t width, std::initializer_list<Tensor> tensors) {
  return width % PACK == 0 && std::ranges::all_of(tensors, [](Tensor const& t) { return reinterpret_cast<uintptr_t>(t.data) % 16 == 0; });
}

}  // namespace ds4
