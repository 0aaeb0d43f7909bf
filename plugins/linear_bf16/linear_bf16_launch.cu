#include "common/op_table.h"
#include "common/tile_counts.h"
#include "linear_bf16/linear_bf16.cuh"

namespace ds4::linear_bf16 {

Status launch(Args const& a) {
  int64_t const outputs = a.weight.dims[0], inputs = a.weight.dims[1];
  DS4_REQUIRE(a.x.last() == inputs, "`x` has rows of %lld, `weight` of %lld", number(a.x.last()), number(inputs));
  if (Status status = check_counts("weight", outputs, inputs); !status.ok()) return status;
  Matrix const matrix{a.weight.as<uint8_t>(), nullptr, static_cast<int>(outputs), static_cast<int>(inputs), 0};
  return launch_linear<Op>({matrix, a.x.as<bf16>(), a.x.rows(), static_cast<int>(inputs), 1, a.y.data}, nullptr, a.stream);
}

}  // namespace ds4::linear_bf16
