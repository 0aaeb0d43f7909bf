#include "common/grid.h"
#include "common/op_table.h"
#include "hc_pre/hc_pre.cuh"

namespace ds4::hc_pre {

constexpr int64_t MAX_WIDTH = 24576;  // of the row in shared memory, without asking for more than 48 KB

int64_t num_slices(Args const& a) { return (a.x.dims[2] * a.x.last() + MIX_SLICE - 1) / MIX_SLICE; }
int64_t num_outputs(Args const& a) { return (2 + a.x.dims[2]) * a.x.dims[2]; }

size_t workspace_bytes(Args const& a) {
  return static_cast<size_t>(a.x.range(0, 2) * num_slices(a) * (num_outputs(a) + 1)) * sizeof(float);
}

template <int STREAMS>
Status launch_pre(Args const& a) {
  constexpr int OUTPUTS = (2 + STREAMS) * STREAMS;
  int64_t const tokens = a.x.range(0, 2);
  auto const width = static_cast<int>(a.x.last()), slices = static_cast<int>(num_slices(a));
  auto* const partial = static_cast<float*>(a.workspace);
  dim3 const grid(static_cast<unsigned>(slices), static_cast<unsigned>((tokens + MIX_TOKENS - 1) / MIX_TOKENS));
  partial_mixes<OUTPUTS, PACK><<<grid, MIX_THREADS, 0, a.stream>>>(a.x.as<bf16>(), a.fn.as<float>(), nullptr, 0, 0, partial, tokens, STREAMS * width);
  if (Status status = launched(); !status.ok()) return status;
  finish<STREAMS, PACK><<<static_cast<unsigned>(tokens), THREADS, static_cast<size_t>(width) * sizeof(bf16), a.stream>>>(
      a.x.as<bf16>(), partial, a.base.as<float>(), a.scale.as<float>(), a.norm.as<bf16>(), a.a.as<bf16>(), a.post.as<float>(), a.comb.as<float>(), slices,
      width, static_cast<int>(a.iterations), static_cast<float>(a.hc_eps), static_cast<float>(a.rms_eps));
  return launched();
}

Status launch(Args const& a) {
  DS4_REQUIRE(a.x.rank == 4 && a.fn.rank == 2, "`x` has rank %d and `fn` %d, expected 4 and 2", a.x.rank, a.fn.rank);
  int64_t const streams = a.x.dims[2], width = a.x.last();
  DS4_REQUIRE(a.fn.dims[0] == num_outputs(a) && a.fn.dims[1] == streams * width, "`fn` is [%lld, %lld], expected [%lld, %lld]",
              static_cast<long long>(a.fn.dims[0]), static_cast<long long>(a.fn.dims[1]), static_cast<long long>(num_outputs(a)),
              static_cast<long long>(streams * width));
  DS4_REQUIRE(a.base.size() == num_outputs(a) && a.scale.size() == 3 && a.norm.size() == width,
              "`base`, `scale`, `norm` have %lld, %lld, %lld values, expected %lld, 3, %lld", static_cast<long long>(a.base.size()),
              static_cast<long long>(a.scale.size()), static_cast<long long>(a.norm.size()), static_cast<long long>(num_outputs(a)),
              static_cast<long long>(width));
  DS4_REQUIRE(width <= MAX_WIDTH, "`x` has %lld columns, expected at most %lld", static_cast<long long>(width), static_cast<long long>(MAX_WIDTH));
  DS4_REQUIRE(a.iterations >= 1, "`iterations` is %lld, expected at least 1", static_cast<long long>(a.iterations));
  DS4_REQUIRE(a.x.range(0, 2) <= 65535 * MIX_TOKENS, "%lld tokens, expected at most %d", static_cast<long long>(a.x.range(0, 2)), 65535 * MIX_TOKENS);
  DS4_REQUIRE(streams == 2 || streams == 4, "`x` has %lld streams, expected 2 or 4", static_cast<long long>(streams));
  if (a.x.size() == 0) return {};
  DS4_REQUIRE(packs(width, {a.x, a.fn, a.norm, a.a}), "rows of %lld columns, expected a multiple of 8 that begins at 16 bytes",
              static_cast<long long>(width));
  return streams == 4 ? launch_pre<4>(a) : launch_pre<2>(a);
}

}  // namespace ds4::hc_pre
