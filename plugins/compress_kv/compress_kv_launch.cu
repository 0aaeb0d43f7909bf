// compress_csa, compress_hca, compress_index: checks, the empty case, then project, pool [append].
#include "common/grid.h"
#include "common/op_table.h"
#include "common/tile_counts.h"
#include "compress_kv/pool.cuh"
#include "compress_kv/project.cuh"

namespace ds4::compress_kv {
namespace {

// What the three ops have in common.
struct Operands {
  Tensor const &x, &wkv, &wgate, &ape, &norm, &freqs, &pending, &cache, &slots, &positions, &num_new, &pending_out, &cache_out;
  double eps;
  void* workspace;
  cudaStream_t stream;

  int64_t num_sequences() const { return x.dims[0]; }
  int64_t num_tokens() const { return x.range(0, 2); }
  int64_t width() const { return norm.size(); }
  int64_t ratio() const { return ape.dims[0]; }
  bool makes_rows_in_ring() const { return x.dims[1] == 1; }
};

template <class Args>
Operands operands(Args const& a) {
  return {a.x, a.wkv, a.wgate, a.ape, a.norm, a.freqs, a.pending, a.cache, a.slots, a.positions, a.num_new, a.pending_out, a.cache_out,
          a.eps, a.workspace, a.stream};
}

size_t bytes_of_rows(Operands const& a) {
  return a.makes_rows_in_ring() ? 0 : static_cast<size_t>(a.num_tokens() * a.pending.last()) * sizeof(float);
}

Status check_weights(Tensor const& weight, char const* name, int64_t rows, int64_t hidden) {
  DS4_REQUIRE(weight.rank == 2 && weight.dims[0] == rows && weight.last() == hidden, "`%s` has shape [%lld, %lld], expected [%lld, %lld]", name,
              number(weight.dims[0]), number(weight.last()), number(rows), number(hidden));
  return check_counts(name, rows, hidden);
}

// Rows of the cache are bf16 or, of another length, packed.
template <class Op>
int64_t bytes_of_entry(Operands const& a) {
  if (a.cache.last() == a.width()) return a.width() * static_cast<int64_t>(sizeof(bf16));
  return Op::packed_bytes(static_cast<int>(a.width()), static_cast<int>(2 * a.freqs.size()));
}

template <class Op>
Status check_state(Operands const& a, int64_t columns, int64_t least) {
  Tensor const &pending = a.pending, &cache = a.cache;
  DS4_REQUIRE(pending.rank == 3 && pending.last() == columns, "`pending` has rows of %lld, expected u and s, %lld", number(pending.last()),
              number(columns));
  DS4_REQUIRE(pending.dims[1] - 1 >= least && pending.dims[1] <= INT_MAX,
              "`pending` keeps %lld rows and one of scratch, expected at least the %lld of an entry", number(pending.dims[1] - 1), number(least));
  DS4_REQUIRE(cache.rank == 3 && cache.dims[0] == pending.dims[0] && cache.dims[1] >= 1 && cache.dims[1] <= INT_MAX,
              "`cache` has %lld slots of %lld rows, expected %lld slots as `pending` has", number(cache.dims[0]), number(cache.dims[1]),
              number(pending.dims[0]));
  DS4_REQUIRE(cache.last() == a.width() || (cache.last() == bytes_of_entry<Op>(a) && cache.last()),
              "`cache` has rows of %lld, expected entries of %lld or, packed, %lld bytes", number(cache.last()), number(a.width()),
              number(Op::packed_bytes(static_cast<int>(a.width()), static_cast<int>(2 * a.freqs.size()))));
  return {};
}

template <class Op>
Status check(Operands const& a) {
  DS4_REQUIRE(a.x.rank == 3 && a.ape.rank == 2, "`x` has rank %d and `ape` %d, expected 3 and 2", a.x.rank, a.ape.rank);
  int64_t const halves = Op::OVERLAP ? 2 : 1, width = a.width(), ratio = a.ratio();
  DS4_REQUIRE(width % CHANNELS == 0 && width <= Op::MOST_WIDTH, "entries are %lld wide, expected a multiple of %d up to %d", number(width), CHANNELS,
              Op::MOST_WIDTH);
  DS4_REQUIRE(2 * a.freqs.size() <= width, "`freqs` turns %lld dims, an entry has %lld", number(2 * a.freqs.size()), number(width));
  DS4_REQUIRE(ratio >= 1 && halves * ratio <= MOST_ROWS && a.ape.last() == halves * width,
              "`ape` has shape [%lld, %lld], expected 1 to %lld rows of %lld", number(ratio), number(a.ape.last()), number(MOST_ROWS / halves),
              number(halves * width));
  if (Status status = check_weights(a.wkv, "wkv", halves * width, a.x.last()); !status.ok()) return status;
  if (Status status = check_weights(a.wgate, "wgate", halves * width, a.x.last()); !status.ok()) return status;
  for (Tensor const* one : {&a.slots, &a.positions, &a.num_new}) {
    DS4_REQUIRE(one->size() == a.num_sequences(), "`slots`, `positions` and `num_new` have %lld values, expected one per batch row, %lld",
                number(one->size()), number(a.num_sequences()));
  }
  DS4_REQUIRE(a.num_tokens() <= INT_MAX, "%lld tokens, expected less than 2^31", number(a.num_tokens()));
  return check_state<Op>(a, 2 * halves * width, halves * ratio);
}

template <int NT, bool aligned>
Status project_streamed(Projection const& a, cudaStream_t stream) {
  int64_t const tiles = (a.num_tokens + STREAM_TOKENS * NT - 1) / (STREAM_TOKENS * NT);
  DS4_REQUIRE(tiles <= MOST_GRID_Y, "%lld tokens of rows that are not whole pieces of 16 bytes, expected at most %lld", number(a.num_tokens),
              number(MOST_GRID_Y * STREAM_TOKENS * NT));
  dim3 const grid(static_cast<unsigned>((a.width + STREAM_ROWS - 1) / STREAM_ROWS), static_cast<unsigned>(tiles), 2);
  project_few<NT, aligned><<<grid, STREAM_THREADS, 0, stream>>>(a);
  return launched();
}

Status project_in_tiles(Projection const& a, cudaStream_t stream) {
  constexpr int shared_bytes = sizeof(ProjectTile::Shared);
  cudaError_t const code = cudaFuncSetAttribute(project_many, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
  DS4_REQUIRE(code == cudaSuccess, "%d bytes of shared memory: %s", shared_bytes, cudaGetErrorString(code));
  dim3 const grid(static_cast<unsigned>((a.width + ProjectTile::ROWS_PER_MATRIX - 1) / ProjectTile::ROWS_PER_MATRIX),
                  static_cast<unsigned>((a.num_tokens + ProjectTile::TOKENS - 1) / ProjectTile::TOKENS), 2);
  project_many<<<grid, TILE_THREADS, shared_bytes, stream>>>(a);
  return launched();
}

// As launch_linear of common/linear.cuh chooses.
Status project(Projection const& a, cudaStream_t stream) {
  if (a.hidden % PIECE) return project_streamed<1, false>(a, stream);
  if (a.num_tokens <= STREAM_TOKENS) return project_streamed<1, true>(a, stream);
  if (a.num_tokens <= MOST_STREAMED_TOKENS) return project_streamed<4, true>(a, stream);
  return project_in_tiles(a, stream);
}

Rows rows_of(Operands const& a) {
  float* const fresh = a.makes_rows_in_ring() ? nullptr : static_cast<float*>(a.workspace);
  return {a.pending_out.as<float>(), fresh, a.slots.as<int64_t>(), a.positions.as<int64_t>(), a.num_new.as<int64_t>(), static_cast<int>(a.x.dims[1]),
          static_cast<int>(a.pending.dims[1] - 1), static_cast<int>(a.pending.last())};
}

template <class Op>
Status pool_entries(Operands const& a, Rows const& rows) {
  int64_t const num_entries = (rows.num_tokens + a.ratio() - 1) / a.ratio();
  pool<Op><<<static_cast<unsigned>(a.num_sequences() * num_entries), THREADS<Op>, 0, a.stream>>>(
      rows, a.norm.as<bf16>(), a.freqs.as<float>(), a.cache_out.as<uint8_t>(), static_cast<int>(num_entries),
      static_cast<int>(a.cache.dims[1]), static_cast<int>(bytes_of_entry<Op>(a)), static_cast<int>(a.ratio()), static_cast<int>(a.width()),
      static_cast<int>(a.freqs.size()), static_cast<float>(a.eps));
  return launched();
}

template <class Op>
Status run(Operands const& a) {
  if (Status status = check<Op>(a); !status.ok()) return status;
  if (a.num_tokens() == 0 || a.width() == 0) return {};
  Rows const rows = rows_of(a);
  Projection const projection{a.wkv.as<uint8_t>(), a.wgate.as<uint8_t>(), a.x.as<bf16>(), a.ape.as<float>(), rows, a.num_tokens(),
                              static_cast<int>(a.wkv.dims[0]), static_cast<int>(a.x.last()), static_cast<int>(a.ratio())};
  if (Status status = project(projection, a.stream); !status.ok()) return status;
  if (Status status = pool_entries<Op>(a, rows); !status.ok() || a.makes_rows_in_ring()) return status;
  int const num_kept = std::min(rows.num_tokens, rows.ring_length);
  append<<<static_cast<unsigned>(a.num_sequences() * num_kept), APPEND_THREADS, 0, a.stream>>>(rows, num_kept);
  return launched();
}

}  // namespace
}  // namespace ds4::compress_kv

namespace ds4 {

Status compress_csa::launch(Args const& a) { return compress_kv::run<compress_kv::Csa>(compress_kv::operands(a)); }
size_t compress_csa::workspace_bytes(Args const& a) { return compress_kv::bytes_of_rows(compress_kv::operands(a)); }

Status compress_hca::launch(Args const& a) { return compress_kv::run<compress_kv::Hca>(compress_kv::operands(a)); }
size_t compress_hca::workspace_bytes(Args const& a) { return compress_kv::bytes_of_rows(compress_kv::operands(a)); }

Status compress_index::launch(Args const& a) {
  DS4_REQUIRE(a.head_dim == compress_kv::Index::MOST_WIDTH && a.norm.size() == a.head_dim,
              "`head_dim` is %lld and entries are %lld wide, expected %d: the Hadamard transform is of that size",
              static_cast<long long>(a.head_dim), static_cast<long long>(a.norm.size()), compress_kv::Index::MOST_WIDTH);
  return compress_kv::run<compress_kv::Index>(compress_kv::operands(a));
}
size_t compress_index::workspace_bytes(Args const& a) { return compress_kv::bytes_of_rows(compress_kv::operands(a)); }

}  // namespace ds4
