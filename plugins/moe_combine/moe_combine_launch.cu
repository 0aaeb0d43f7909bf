#include "common/grid.h"
#include "common/op_table.h"
#include "moe_combine/moe_combine.cuh"

namespace ds4::moe_combine {

Status launch(Args const& a) {
  DS4_REQUIRE(a.partial.same_shape(a.shared), "`partial` has %lld values and `shared` %lld, expected one shape",
              static_cast<long long>(a.partial.size()), static_cast<long long>(a.shared.size()));
  int64_t const num = a.y.size();
  if (num == 0) return {};
  combine<<<blocks_for(num, THREADS), THREADS, 0, a.stream>>>(a.partial.as<float>(), a.shared.as<bf16>(), a.y.as<bf16>(), num);
  return launched();
}

}  // namespace ds4::moe_combine
