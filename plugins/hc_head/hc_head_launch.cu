#include "common/grid.h"
#include "common/op_table.h"
#include "hc_head/hc_head.cuh"

namespace ds4::hc_head {

constexpr int64_t MAX_WIDTH = 24576;  // of the row in shared memory, without asking for more than 48 KB

int64_t num_slices(Args const& a) { return (a.x.dims[2] * a.x.last() + MIX_SLICE - 1) / MIX_SLICE; }

size_t workspace_bytes(Args const& a) {
  return static_cast<size_t>(a.rows.size() * num_slices(a) * (a.x.dims[2] + 1)) * sizeof(float);
}

template <int STREAMS>
Status launch_head(Args const& a) {
  int64_t const rows = a.rows.size(), rows_per_batch = a.rows.last(), tokens_per_batch = a.x.dims[1];
  auto const width = static_cast<int>(a.x.last()), slices = static_cast<int>(num_slices(a));
  auto* const partial = static_cast<float*>(a.workspace);
  dim3 const grid(static_cast<unsigned>(slices), static_cast<unsigned>((rows + MIX_TOKENS - 1) / MIX_TOKENS));
  partial_mixes<STREAMS, PACK><<<grid, MIX_THREADS, 0, a.stream>>>(a.x.as<bf16>(), a.fn.as<float>(), a.rows.as<int64_t>(), rows_per_batch,
                                                                   tokens_per_batch, partial, rows, STREAMS * width);
  if (Status status = launched(); !status.ok()) return status;
  finish<STREAMS, PACK><<<static_cast<unsigned>(rows), THREADS, static_cast<size_t>(width) * sizeof(bf16), a.stream>>>(
      a.x.as<bf16>(), partial, a.base.as<float>(), a.scale.as<float>(), a.norm.as<bf16>(), a.rows.as<int64_t>(), rows_per_batch, tokens_per_batch,
      a.h.as<bf16>(), slices, width, static_cast<float>(a.hc_eps), static_cast<float>(a.rms_eps));
  return launched();
}

Status launch(Args const& a) {
  DS4_REQUIRE(a.x.rank == 4 && a.fn.rank == 2 && a.rows.rank == 2, "`x`, `fn`, `rows` have rank %d, %d, %d, expected 4, 2, 2", a.x.rank, a.fn.rank,
              a.rows.rank);
  int64_t const streams = a.x.dims[2], width = a.x.last();
  DS4_REQUIRE(a.fn.dims[0] == streams && a.fn.dims[1] == streams * width, "`fn` is [%lld, %lld], expected [%lld, %lld]",
              static_cast<long long>(a.fn.dims[0]), static_cast<long long>(a.fn.dims[1]), static_cast<long long>(streams),
              static_cast<long long>(streams * width));
  DS4_REQUIRE(a.base.size() == streams && a.scale.size() == 1 && a.norm.size() == width,
              "`base`, `scale`, `norm` have %lld, %lld, %lld values, expected %lld, 1, %lld", static_cast<long long>(a.base.size()),
              static_cast<long long>(a.scale.size()), static_cast<long long>(a.norm.size()), static_cast<long long>(streams),
              static_cast<long long>(width));
  DS4_REQUIRE(a.rows.dims[0] == a.x.dims[0], "`rows` has %lld batches and `x` %lld, expected the same", static_cast<long long>(a.rows.dims[0]),
              static_cast<long long>(a.x.dims[0]));
  DS4_REQUIRE(width <= MAX_WIDTH, "`x` has %lld columns, expected at most %lld", static_cast<long long>(width), static_cast<long long>(MAX_WIDTH));
  DS4_REQUIRE(a.rows.size() <= 65535 * MIX_TOKENS, "%lld rows, expected at most %d", static_cast<long long>(a.rows.size()), 65535 * MIX_TOKENS);
  DS4_REQUIRE(streams == 4, "`x` has %lld streams, expected 4", static_cast<long long>(streams));
  if (a.h.size() == 0) return {};
  DS4_REQUIRE(packs(width, {a.x, a.fn, a.norm, a.h}), "rows of %lld columns, expected a multiple of 8 that begins at 16 bytes",
              static_cast<long long>(width));
  return launch_head<4>(a);
}

}  // namespace ds4::hc_head
