#include "common/op_table.h"
#include "common/tile_counts.h"
#include "grouped_linear/grouped_linear.cuh"

namespace ds4::grouped_linear {

Status launch(Args const& a) {
  int64_t const rows = a.weight.dims[0], inputs = a.weight.dims[1], groups = a.groups;
  DS4_REQUIRE(groups >= 1 && groups <= MOST_GRID_Y && rows % groups == 0, "`groups` is %lld, expected a divisor of the %lld rows of `weight`",
              number(groups), number(rows));
  DS4_REQUIRE(a.x.last() == groups * inputs, "`x` has rows of %lld, expected %lld groups of %lld", number(a.x.last()), number(groups),
              number(inputs));
  if (Status status = check_tiles("scale", a.scale, rows, inputs); !status.ok()) return status;
  Matrix const matrix{a.weight.as<uint8_t>(), a.scale.as<uint8_t>(), static_cast<int>(rows / groups), static_cast<int>(inputs), 0};
  return launch_linear<Op>({matrix, a.x.as<bf16>(), a.x.rows(), static_cast<int>(inputs), static_cast<int>(groups), a.y.data}, nullptr,
                           a.stream);
}

}  // namespace ds4::grouped_linear
