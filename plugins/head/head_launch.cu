#include "common/op_table.h"
#include "common/tile_counts.h"
#include "head/head.cuh"

namespace ds4::head {

Status launch(Args const& a) {
  int64_t const vocabulary = a.weight.dims[0], width = a.weight.dims[1];
  DS4_REQUIRE(a.h.last() == width, "`h` has rows of %lld, `weight` of %lld", number(a.h.last()), number(width));
  if (Status status = check_counts("weight", vocabulary, width); !status.ok()) return status;
  Matrix const matrix{a.weight.as<uint8_t>(), nullptr, static_cast<int>(vocabulary), static_cast<int>(width), 0};
  return launch_linear<Op>({matrix, a.h.as<bf16>(), a.h.rows(), static_cast<int>(width), 1, a.logits.data}, nullptr, a.stream);
}

}  // namespace ds4::head
