// route_scores and route_hash: checks, the empty case, dispatch
#include "common/op_table.h"
#include "common/tile_counts.h"
#include "route/route.cuh"

namespace ds4::route {
namespace {

Status check(Tensor const& x, Tensor const& gate, int64_t k) {
  DS4_REQUIRE(x.last() == gate.dims[1], "`x` has rows of %lld, `gate` of %lld", number(x.last()), number(gate.dims[1]));
  DS4_REQUIRE(k >= 1 && k <= MOST_PLACES && k <= gate.dims[0], "%lld experts of %lld for a token, expected 1 to %d", number(k),
              number(gate.dims[0]), MOST_PLACES);
  DS4_REQUIRE(x.rows() <= INT_MAX, "%lld tokens, expected less than 2^31", number(x.rows()));
  return check_counts("gate", gate.dims[0], gate.dims[1]);
}

}  // namespace
}  // namespace ds4::route

namespace ds4::route_scores {

size_t workspace_bytes(Args const& a) { return static_cast<size_t>(a.x.rows() * a.gate.dims[0]) * sizeof(float); }

Status launch(Args const& a) {
  int64_t const num_tokens = a.x.rows(), num_experts = a.gate.dims[0], width = a.gate.dims[1];
  if (Status status = route::check(a.x, a.gate, a.k); !status.ok()) return status;
  DS4_REQUIRE(a.bias.size() == num_experts, "`bias` has %lld values, expected one per expert, %lld", number(a.bias.size()), number(num_experts));
  if (num_tokens == 0) return {};
  auto* const z = static_cast<float*>(a.workspace);
  Matrix const matrix{a.gate.as<uint8_t>(), nullptr, static_cast<int>(num_experts), static_cast<int>(width), 0};
  Status const status = launch_linear<route::Gate>({matrix, a.x.as<bf16>(), num_tokens, static_cast<int>(width), 1, z}, nullptr, a.stream);
  if (!status.ok()) return status;
  constexpr int TOKENS = route::SELECT_THREADS / LANES;
  route::select<<<static_cast<unsigned>((num_tokens + TOKENS - 1) / TOKENS), route::SELECT_THREADS, 0, a.stream>>>(
      z, a.bias.as<float>(), a.weights.as<float>(), a.indices.as<int64_t>(), num_tokens, static_cast<int>(num_experts),
      static_cast<int>(a.k), static_cast<float>(a.scale));
  return launched();
}

}  // namespace ds4::route_scores

namespace ds4::route_hash {

Status launch(Args const& a) {
  int64_t const num_tokens = a.x.rows(), k = a.table.dims[1];
  if (Status status = route::check(a.x, a.gate, k); !status.ok()) return status;
  DS4_REQUIRE(a.ids.size() == num_tokens, "`ids` has %lld values, expected one per token, %lld", number(a.ids.size()), number(num_tokens));
  if (num_tokens == 0) return {};
  auto* kernel = route::hash<false>;
  if (a.x.last() % PIECE == 0) kernel = route::hash<true>;
  kernel<<<static_cast<unsigned>(num_tokens), route::HASH_THREADS, 0, a.stream>>>(
      a.x.as<bf16>(), a.gate.as<bf16>(), a.ids.as<int64_t>(), a.table.as<int64_t>(), a.weights.as<float>(), a.indices.as<int64_t>(),
      static_cast<int>(a.x.last()), static_cast<int>(a.gate.dims[0]), a.table.dims[0], static_cast<int>(k), static_cast<float>(a.scale));
  return launched();
}

}  // namespace ds4::route_hash
