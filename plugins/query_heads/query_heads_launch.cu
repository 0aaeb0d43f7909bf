#include "common/grid.h"
#include "common/op_table.h"
#include "query_heads/query_heads.cuh"

namespace ds4::query_heads {

Status launch(Args const& a) {
  DS4_REQUIRE(a.x.rank == 3, "`x` has rank %d, expected 3", a.x.rank);
  DS4_REQUIRE(a.heads >= 1 && a.x.last() % a.heads == 0, "`x` has rows of %lld, expected a multiple of `heads`, %lld",
              static_cast<long long>(a.x.last()), static_cast<long long>(a.heads));
  int64_t const width = a.x.last() / a.heads, tokens = a.x.rows();
  DS4_REQUIRE(width % 2 == 0 && width <= WarpRow::MOST_COLUMNS, "heads of `x` are %lld wide, expected an even number up to %d",
              static_cast<long long>(width), WarpRow::MOST_COLUMNS);
  DS4_REQUIRE(a.positions.size() == a.x.dims[0], "`positions` has %lld values, expected one per batch row, %lld",
              static_cast<long long>(a.positions.size()), static_cast<long long>(a.x.dims[0]));
  DS4_REQUIRE(2 * a.freqs.size() <= width, "`freqs` turns %lld dims, a head has %lld", static_cast<long long>(2 * a.freqs.size()),
              static_cast<long long>(width));
  if (a.q.size() == 0) return {};
  // Slices of a token only while its tokens do not fill the GPU: each computes cos and sin again.
  int64_t const slices = std::clamp<int64_t>(multiprocessors() / tokens, 1, (a.heads + WARPS - 1) / WARPS);
  auto const kernel = packs(width, {a.x, a.q}) ? rotate_heads<true> : rotate_heads<false>;
  kernel<<<dim3(static_cast<unsigned>(tokens), static_cast<unsigned>(slices)), THREADS, 0, a.stream>>>(
      a.x.as<bf16>(), a.positions.as<int64_t>(), a.freqs.as<float>(), a.q.as<bf16>(), static_cast<int>(a.x.dims[1]),
      static_cast<int>(a.heads), static_cast<int>(width), static_cast<int>(a.freqs.size()), static_cast<float>(a.eps));
  return launched();
}

}  // namespace ds4::query_heads
