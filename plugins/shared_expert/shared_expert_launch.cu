#include <algorithm>

#include "common/op_table.h"
#include "common/tile_counts.h"
#include "shared_expert/shared_expert.cuh"

namespace ds4::shared_expert {

namespace {

// h, then the activations of either half as they are quantised.
size_t bytes_of_h(Args const& a) { return (static_cast<size_t>(a.x.rows() * a.w1.dims[0]) * sizeof(bf16) + 255) / 256 * 256; }

}  // namespace

size_t workspace_bytes(Args const& a) {
  return bytes_of_h(a) + std::max(quantised_bytes(a.x.rows(), a.x.last()), quantised_bytes(a.x.rows(), a.w1.dims[0]));
}

Status launch(Args const& a) {
  int64_t const inner = a.w1.dims[0], hidden = a.w1.dims[1];
  DS4_REQUIRE(a.x.last() == hidden, "`x` has rows of %lld, `w1` of %lld", number(a.x.last()), number(hidden));
  DS4_REQUIRE(a.w3.same_shape(a.w1), "`w3` has %lld values, expected %lld, as `w1` has", number(a.w3.size()), number(a.w1.size()));
  DS4_REQUIRE(a.w2.dims[0] == hidden && a.w2.dims[1] == inner, "`w2` has shape [%lld, %lld], expected [%lld, %lld]", number(a.w2.dims[0]),
              number(a.w2.dims[1]), number(hidden), number(inner));
  if (Status status = check_tiles("w1_scale", a.w1_scale, inner, hidden); !status.ok()) return status;
  if (Status status = check_tiles("w3_scale", a.w3_scale, inner, hidden); !status.ok()) return status;
  if (Status status = check_tiles("w2_scale", a.w2_scale, hidden, inner); !status.ok()) return status;
  auto* const h = static_cast<bf16*>(a.workspace);
  void* const quantised = static_cast<unsigned char*>(a.workspace) + bytes_of_h(a);
  Matrix const w1{a.w1.as<uint8_t>(), a.w1_scale.as<uint8_t>(), static_cast<int>(inner), static_cast<int>(hidden), 0};
  Matrix const w2{a.w2.as<uint8_t>(), a.w2_scale.as<uint8_t>(), static_cast<int>(hidden), static_cast<int>(inner), 0};
  Status const status = launch_linear<Up>({w1, a.x.as<bf16>(), a.x.rows(), static_cast<int>(hidden), 1, h, a.w3.as<uint8_t>(),
                                           a.w3_scale.as<uint8_t>(), static_cast<float>(a.limit)}, quantised, a.stream);
  if (!status.ok()) return status;
  return launch_linear<Down>({w2, h, a.x.rows(), static_cast<int>(inner), 1, a.y.data}, quantised, a.stream);
}

}  // namespace ds4::shared_expert
