// How many blocks a launch gets.
#pragma once
#include <algorithm>
#include <cstdint>

namespace ds4 {

// Enough blocks for every item, and no more than fill the largest GPU several times: kernels step by the grid.
inline unsigned blocks_for(int64_t num_items, int64_t per_block, int64_t most = 8192) {
  return static_cast<unsigned>(std::min((num_items + per_block - 1) / per_block, most));
}

}  // namespace ds4
