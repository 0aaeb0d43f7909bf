#include "common/grid.h"
#include "common/op_table.h"
#include "kv_row/kv_row.cuh"

namespace ds4::kv_row {

Status launch(Args const& a) {
  DS4_REQUIRE(a.x.rank == 3, "`x` has rank %d, expected 3", a.x.rank);
  int64_t const width = a.x.last(), num_rows = a.x.rows();
  DS4_REQUIRE(width % 2 == 0 && width <= WarpRow::MOST_COLUMNS, "`x` has rows of %lld, expected an even number up to %d",
              static_cast<long long>(width), WarpRow::MOST_COLUMNS);
  DS4_REQUIRE(a.norm.size() == width, "`norm` has %lld values for rows of %lld", static_cast<long long>(a.norm.size()),
              static_cast<long long>(width));
  DS4_REQUIRE(a.positions.size() == a.x.dims[0], "`positions` has %lld values, expected one per batch row, %lld",
              static_cast<long long>(a.positions.size()), static_cast<long long>(a.x.dims[0]));
  DS4_REQUIRE(2 * a.freqs.size() <= width, "`freqs` turns %lld dims, a row has %lld", static_cast<long long>(2 * a.freqs.size()),
              static_cast<long long>(width));
  if (a.kv.size() == 0) return {};
  auto const kernel = packs(width, {a.x, a.norm, a.kv}) ? finish<true> : finish<false>;
  kernel<<<static_cast<unsigned>((num_rows + WARPS - 1) / WARPS), THREADS, 0, a.stream>>>(
      a.x.as<bf16>(), a.norm.as<bf16>(), a.positions.as<int64_t>(), a.freqs.as<float>(), a.kv.as<bf16>(), num_rows,
      static_cast<int>(a.x.dims[1]), static_cast<int>(width), static_cast<int>(a.freqs.size()), static_cast<float>(a.eps));
  return launched();
}

}  // namespace ds4::kv_row
