#include <cstring>

#include "common/op_table.h"
#include "common/tile_counts.h"
#include "moe/launches.h"

// moe: checks, the empty case, the workspace; fp4_launch.cu and fp8_launch.cu launch.
namespace ds4::moe {
namespace {

constexpr int64_t MOST_STREAMED_PER_EXPERT = 4;  // pairs, on average: from there on, tiles of 8 are read too often
constexpr int64_t MOST_GRID_Y = 65535;

bool is_fp4(Args const& a) { return !std::strcmp(a.weight_format, "fp4"); }
int64_t inner_of(Args const& a) { return a.x.last() ? a.experts_weight.last() * (is_fp4(a) ? 2 : 1) / a.x.last() : 0; }

// The parts of the workspace, each at a multiple of 256 bytes. Entries of the table: at most one a pair, or one per full tile
// and expert.
struct Layout {
  size_t x, h, y, pairs, tiles, num_bytes;

  Layout(int64_t num_tokens, int64_t num_pairs, int64_t num_experts, int64_t hidden, int64_t inner) {
    num_bytes = 0;
    auto const part = [this](int64_t size) {
      size_t const at = num_bytes;
      num_bytes += (static_cast<size_t>(size) + 255) / 256 * 256;
      return at;
    };
    x = part(num_tokens * padded_to_a8(hidden) * int64_t{sizeof(bf16)});
    h = part(num_pairs * padded_to_a8(inner) * int64_t{sizeof(bf16)});
    y = part(num_pairs * hidden * int64_t{sizeof(bf16)});
    pairs = part(num_pairs * int64_t{sizeof(int)});
    tiles = part((num_pairs + num_experts) * int64_t{sizeof(Tile)});
  }
};

Status check(Args const& a, int64_t inner) {
  int64_t const hidden = a.x.last(), num_experts = a.expert_rows.size(), k = a.indices.last(), granule = is_fp4(a) ? 32 : 16;
  DS4_REQUIRE(is_fp4(a) || !std::strcmp(a.weight_format, "fp8"), "`weight_format` is `%s`, expected `fp4` or `fp8`", a.weight_format);
  DS4_REQUIRE(a.weights.same_shape(a.indices) && a.indices.rows() == a.x.rows(),
              "`weights` has %lld values and `indices` %lld, expected one list for each of %lld tokens", number(a.weights.size()),
              number(a.indices.size()), number(a.x.rows()));
  DS4_REQUIRE(k >= 1 && k <= MOST_PLACES, "tokens take %lld experts each, expected 1 to %d", number(k), MOST_PLACES);
  DS4_REQUIRE(a.num_new.size() == a.x.dims[0], "`num_new` has %lld values, expected one per batch row, %lld", number(a.num_new.size()),
              number(a.x.dims[0]));
  DS4_REQUIRE(hidden > 0 && hidden % granule == 0 && inner > 0 && inner % granule == 0,
              "experts are %lld wide inside, tokens %lld, expected multiples of %lld", number(inner), number(hidden), number(granule));
  DS4_REQUIRE(a.experts_weight.rank == 3 && a.experts_weight.dims[1] == 3 && a.experts_scale.rank == 3 && a.experts_scale.dims[1] == 3,
              "an expert has %lld weights and %lld scales, expected 3 of each", number(a.experts_weight.dims[1]),
              number(a.experts_scale.dims[1]));
  DS4_REQUIRE(a.experts_weight.last() * (is_fp4(a) ? 2 : 1) == inner * hidden, "`experts_weight` has %lld bytes a matrix, no multiple of %lld",
              number(a.experts_weight.last()), number(hidden));
  int64_t const scales = is_fp4(a) ? inner * hidden / 32 : (inner + 127) / 128 * ((hidden + 127) / 128);
  DS4_REQUIRE(a.experts_scale.last() == scales, "`experts_scale` has %lld values a matrix, expected %lld", number(a.experts_scale.last()),
              number(scales));
  DS4_REQUIRE(a.experts_weight.dims[0] == num_experts && a.experts_scale.dims[0] == num_experts,
              "%lld weights and %lld scales of experts, expected %lld, as `expert_rows` has", number(a.experts_weight.dims[0]),
              number(a.experts_scale.dims[0]), number(num_experts));
  DS4_REQUIRE(a.indices.size() + num_experts <= INT_MAX, "%lld pairs of token and expert, expected less than 2^31",
              number(a.indices.size()));
  return check_counts("experts_weight", inner, hidden);
}

}  // namespace

size_t workspace_bytes(Args const& a) {
  return Layout(a.x.rows(), a.indices.size(), a.expert_rows.size(), a.x.last(), inner_of(a)).num_bytes;
}

Status launch(Args const& a) {
  int64_t const inner = inner_of(a), hidden = a.x.last(), num_experts = a.expert_rows.size(), num_pairs = a.indices.size();
  if (a.x.rows() == 0) return {};
  if (Status status = check(a, inner); !status.ok()) return status;
  bool const streamed = num_pairs <= MOST_STREAMED_PER_EXPERT * num_experts;
  int64_t const per_tile = streamed ? STREAM_TOKENS : EXPERT_TILE;
  bool const tile_per_pair = num_pairs <= num_pairs / per_tile + num_experts;
  int64_t const num_tiles = tile_per_pair ? num_pairs : num_pairs / per_tile + num_experts;
  DS4_REQUIRE(num_tiles <= MOST_GRID_Y, "%lld tiles of pairs of token and expert, expected at most %lld", number(num_tiles),
              number(MOST_GRID_Y));
  Layout const at(a.x.rows(), num_pairs, num_experts, hidden, inner);
  auto* const workspace = static_cast<unsigned char*>(a.workspace);
  Call const call{a.indices.as<int64_t>(), a.num_new.as<int64_t>(), a.expert_rows.as<int64_t>(), a.weights.as<float>(),
                  a.experts_weight.as<uint8_t>(), a.experts_scale.as<uint8_t>(),
                  reinterpret_cast<bf16*>(workspace + at.x), reinterpret_cast<bf16*>(workspace + at.h),
                  reinterpret_cast<bf16*>(workspace + at.y), reinterpret_cast<int*>(workspace + at.pairs),
                  reinterpret_cast<Tile*>(workspace + at.tiles), a.experts_weight.last(), a.experts_scale.last(),
                  static_cast<float>(a.limit), static_cast<int>(a.x.rows()), static_cast<int>(a.indices.last()),
                  static_cast<int>(a.x.dims[1]), static_cast<int>(a.expert_begin), static_cast<int>(num_experts),
                  static_cast<int>(hidden), static_cast<int>(inner), padded_to_a8(hidden), padded_to_a8(inner),
                  static_cast<int>(num_pairs), static_cast<int>(num_tiles), static_cast<int>(per_tile), tile_per_pair};
  bf16 const* const x = a.x.as<bf16>();
  float* const partial = a.partial.as<float>();
  return is_fp4(a) ? launch_fp4(call, x, partial, streamed, a.stream) : launch_fp8(call, x, partial, streamed, a.stream);
}

}  // namespace ds4::moe
