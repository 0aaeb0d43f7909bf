#include "common/grid.h"
#include "common/op_table.h"
#include "hc_post/hc_post.cuh"

namespace ds4::hc_post {

template <int STREAMS>
Status launch_mix(Args const& a) {
  int64_t const tokens = a.x.range(0, 2), width = a.x.last();
  int const pack = packs(width, {a.y, a.x, a.out}) ? PACK : 1;
  dim3 const grid(static_cast<unsigned>((width + THREADS * pack - 1) / (THREADS * pack)), blocks_for(tokens, 1));
  auto const kernel = pack == PACK ? mix<STREAMS, PACK> : mix<STREAMS, 1>;
  kernel<<<grid, THREADS, 0, a.stream>>>(a.y.as<bf16>(), a.x.as<bf16>(), a.post.as<float>(), a.comb.as<float>(), a.out.as<bf16>(), tokens,
                                         static_cast<int>(width));
  return launched();
}

Status launch(Args const& a) {
  DS4_REQUIRE(a.y.rank == 3 && a.x.rank == 4 && a.post.rank == 3 && a.comb.rank == 4,
              "expected y [B, T, D], x [B, T, N, D], post [B, T, N], comb [B, T, N, N]");
  int64_t const streams = a.x.dims[2], tokens = a.x.range(0, 2);
  DS4_REQUIRE(a.y.last() == a.x.last(), "`y` has %lld columns and `x` %lld, expected the same", static_cast<long long>(a.y.last()),
              static_cast<long long>(a.x.last()));
  DS4_REQUIRE(a.y.range(0, 2) == tokens && a.post.size() == tokens * streams && a.comb.size() == tokens * streams * streams,
              "`post` has %lld and `comb` %lld values for %lld tokens of %lld streams", static_cast<long long>(a.post.size()),
              static_cast<long long>(a.comb.size()), static_cast<long long>(tokens), static_cast<long long>(streams));
  if (a.out.size() == 0) return {};
  if (streams == 4) return launch_mix<4>(a);
  if (streams == 2) return launch_mix<2>(a);
  return Status::error("`x` has %lld streams, expected 2 or 4", static_cast<long long>(streams));
}

}  // namespace ds4::hc_post
