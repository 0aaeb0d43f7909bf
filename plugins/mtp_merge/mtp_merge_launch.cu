#include "common/grid.h"
#include "common/op_table.h"
#include "mtp_merge/mtp_merge.cuh"

namespace ds4::mtp_merge {

Status launch(Args const& a) {
  DS4_REQUIRE(a.e.rank == 4 && a.h.rank == 4 && a.e.dims[2] == 1, "`e` must be [B, T, 1, D] and `h` [B, T, N, D]");
  DS4_REQUIRE(a.e.range(0, 2) == a.h.range(0, 2) && a.e.last() == a.h.last(),
              "`e` is %lld tokens of %lld values, `h` %lld of %lld; expected the same", static_cast<long long>(a.e.range(0, 2)),
              static_cast<long long>(a.e.last()), static_cast<long long>(a.h.range(0, 2)), static_cast<long long>(a.h.last()));
  if (a.out.size() == 0) return {};
  int const width = packs(a.h.last(), {a.e, a.h, a.out}) ? PACK : 1;
  int64_t const num_packs = a.out.size() / width;
  auto const kernel = width == PACK ? merge<PACK> : merge<1>;
  kernel<<<blocks_for(num_packs, THREADS), THREADS, 0, a.stream>>>(a.e.as<bf16>(), a.h.as<bf16>(), a.out.as<bf16>(), num_packs,
                                                                   static_cast<int>(a.h.dims[2]), static_cast<int>(a.h.last() / width));
  return launched();
}

}  // namespace ds4::mtp_merge
