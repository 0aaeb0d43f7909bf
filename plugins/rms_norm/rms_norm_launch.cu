#include "common/grid.h"
#include "common/op_table.h"
#include "rms_norm/rms_norm.cuh"

namespace ds4::rms_norm {

template <int TEAM>
Status launch_norm(Args const& a) {
  auto const kernel = packs(a.x.last(), {a.x, a.weight, a.y}) ? norm<TEAM, PACK> : norm<TEAM, 1>;
  kernel<<<blocks_for(a.x.rows(), THREADS / TEAM), THREADS, 0, a.stream>>>(a.x.as<bf16>(), a.weight.as<bf16>(), a.y.as<bf16>(), a.x.rows(),
                                                                           static_cast<int>(a.x.last()), static_cast<float>(a.eps));
  return launched();
}

Status launch(Args const& a) {
  DS4_REQUIRE(a.x.rank >= 1 && a.weight.rank == 1, "`x` has rank %d and `weight` %d, expected at least 1 and 1", a.x.rank, a.weight.rank);
  DS4_REQUIRE(a.weight.size() == a.x.last(), "`weight` has %lld values for rows of %lld", static_cast<long long>(a.weight.size()),
              static_cast<long long>(a.x.last()));
  if (a.y.size() == 0) return {};
  return a.x.last() <= WARP_FORM_WIDTH ? launch_norm<LANES>(a) : launch_norm<THREADS>(a);
}

}  // namespace ds4::rms_norm
