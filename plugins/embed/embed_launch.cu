#include "common/grid.h"
#include "common/op_table.h"
#include "embed/embed.cuh"

namespace ds4::embed {

Status launch(Args const& a) {
  DS4_REQUIRE(a.official == 1, "`official` is %lld, expected 1: plugins compute official numerics", static_cast<long long>(a.official));
  DS4_REQUIRE(a.hc_mult >= 1, "`hc_mult` is %lld, expected at least 1", static_cast<long long>(a.hc_mult));
  DS4_REQUIRE(a.weight.rank == 2, "`weight` has rank %d, expected 2", a.weight.rank);
  if (a.x.size() == 0) return {};
  int const width = packs(a.weight.last(), {a.weight, a.x}) ? PACK : 1;
  auto const packs_per_row = static_cast<int>(a.weight.last() / width);
  int64_t const num_packs = a.ids.size() * packs_per_row;
  auto const kernel = width == PACK ? look_up<PACK> : look_up<1>;
  kernel<<<blocks_for(num_packs, THREADS), THREADS, 0, a.stream>>>(a.ids.as<int64_t>(), a.weight.as<bf16>(), a.x.as<bf16>(), num_packs,
                                                                   static_cast<int>(a.hc_mult), packs_per_row);
  return launched();
}

}  // namespace ds4::embed
