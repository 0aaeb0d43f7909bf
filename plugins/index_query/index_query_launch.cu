#include "common/grid.h"
#include "common/op_table.h"
#include "index_query/index_query.cuh"

namespace ds4::index_query {

template <int DIM>
Status launch_dim(Args const& a) {
  int64_t const tokens = a.x.rows(), groups = (a.heads + HEADS_PER_WARP<DIM> - 1) / HEADS_PER_WARP<DIM>;
  // Slices of a token only while its tokens do not fill the GPU: each computes cos and sin again.
  int64_t const slices = std::clamp<int64_t>(multiprocessors() / tokens, 1, (groups + WARPS - 1) / WARPS);
  rotate_and_quantise<DIM><<<dim3(static_cast<unsigned>(tokens), static_cast<unsigned>(slices)), THREADS, 0, a.stream>>>(
      a.x.as<bf16>(), a.positions.as<int64_t>(), a.freqs.as<float>(), a.q.as<bf16>(), static_cast<int>(a.x.dims[1]),
      static_cast<int>(a.heads), static_cast<int>(a.freqs.size()));
  return launched();
}

Status launch(Args const& a) {
  DS4_REQUIRE(a.x.rank == 3, "`x` has rank %d, expected 3", a.x.rank);
  DS4_REQUIRE(a.heads >= 1 && a.x.last() == a.heads * a.head_dim, "`x` has rows of %lld, expected `heads` times `head_dim`, %lld times %lld",
              static_cast<long long>(a.x.last()), static_cast<long long>(a.heads), static_cast<long long>(a.head_dim));
  DS4_REQUIRE(a.head_dim == 32 || a.head_dim == 64 || a.head_dim == 128, "`head_dim` is %lld, expected 32, 64 or 128",
              static_cast<long long>(a.head_dim));
  DS4_REQUIRE(a.positions.size() == a.x.dims[0], "`positions` has %lld values, expected one per batch row, %lld",
              static_cast<long long>(a.positions.size()), static_cast<long long>(a.x.dims[0]));
  DS4_REQUIRE(2 * a.freqs.size() <= a.head_dim, "`freqs` turns %lld dims, a head has %lld", static_cast<long long>(2 * a.freqs.size()),
              static_cast<long long>(a.head_dim));
  if (a.q.size() == 0) return {};
  DS4_REQUIRE(packs(a.head_dim, {a.x, a.q}), "`x` or `q` does not begin at 16 bytes");
  switch (a.head_dim) {
    case 32: return launch_dim<32>(a);
    case 64: return launch_dim<64>(a);
    default: return launch_dim<128>(a);
  }
}

}  // namespace ds4::index_query
