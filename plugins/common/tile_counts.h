// What the launchers of linears check of their matrices.
#pragma once
#include <climits>

#include "common/tensor.h"

namespace ds4 {

inline long long number(int64_t value) { return value; }

// Kernels count rows and columns in 32 bits, and places in 64.
inline Status check_counts(char const* name, int64_t rows, int64_t columns) {
  DS4_REQUIRE(rows <= INT_MAX / 2 && columns <= INT_MAX / 2, "`%s` has %lld rows of %lld, expected less than 2^30 of either", name,
              number(rows), number(columns));
  return {};
}

// One scale for each 128x128 tile of a matrix.
inline Status check_tiles(char const* name, Tensor const& scale, int64_t rows, int64_t columns) {
  int64_t const tile_rows = (rows + 127) / 128, tile_columns = (columns + 127) / 128;
  DS4_REQUIRE(scale.rank == 2 && scale.dims[0] == tile_rows && scale.dims[1] == tile_columns,
              "`%s` has %lld values, expected [%lld, %lld], one per 128x128 tile of [%lld, %lld]", name, number(scale.size()),
              number(tile_rows), number(tile_columns), number(rows), number(columns));
  return check_counts(name, rows, columns);
}

}  // namespace ds4
