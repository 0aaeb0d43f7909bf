// attention_window, attention_csa, attention_hca: checks, the empty case, tile and splits, then attend [merge] append.
#include "sparse_attention/append.cuh"
#include "sparse_attention/tiles.cuh"

namespace ds4::sparse_attention {
namespace {

constexpr int MOST_HEADS_PER_TILE = 64;

long long number(int64_t value) { return value; }

Status check_layout(Operands const& a) {
  int64_t const width = a.width(), num_roped = 2 * a.freqs.size();
  if (!a.packed()) return {};
  int64_t const num_bytes = packed_kv_bytes(static_cast<int>(width), static_cast<int>(num_roped));
  DS4_REQUIRE(a.ring.last() == num_bytes, "`ring` has rows of %lld, expected %lld values or %lld bytes", number(a.ring.last()),
              number(width), number(num_bytes));
  DS4_REQUIRE(width != 64, "packed rows of heads of 64, expected heads of 128, 192 or 512");
  DS4_REQUIRE(num_roped % PIECE == 0, "`freqs` turns %lld dims of packed rows, expected a multiple of %d", number(num_roped), PIECE);
  return {};
}

Status check(Operands const& a) {
  int64_t const batch = a.q.dims[0], tokens = a.q.dims[1], width = a.width();
  DS4_REQUIRE(width == 64 || width == 128 || width == 192 || width == 512,
              "heads of `q` are %lld wide, expected 64, 128, 192 or 512", number(width));
  DS4_REQUIRE(a.kv.dims[0] == batch && a.kv.dims[1] == tokens && a.kv.dims[2] == width,
              "`kv` has shape [%lld, %lld, %lld], expected [%lld, %lld, %lld] as `q` has", number(a.kv.dims[0]),
              number(a.kv.dims[1]), number(a.kv.dims[2]), number(batch), number(tokens), number(width));
  DS4_REQUIRE(a.window >= 1 && a.ring.dims[1] - 1 >= a.window,
              "`ring` keeps %lld rows and one of scratch, expected at least the window of %lld", number(a.ring.dims[1] - 1),
              number(a.window));
  DS4_REQUIRE(a.sink.size() == a.num_heads(), "`sink` has %lld values, expected one per head, %lld", number(a.sink.size()),
              number(a.num_heads()));
  DS4_REQUIRE(2 * a.freqs.size() <= width, "`freqs` turns %lld dims, a head has %lld", number(2 * a.freqs.size()), number(width));
  if (Status status = check_layout(a); !status.ok()) return status;
  for (Tensor const* rows : {&a.slots, &a.positions, &a.num_new}) {
    DS4_REQUIRE(rows->size() == batch, "`slots`, `positions` and `num_new` have %lld values, expected one per batch row, %lld",
                number(rows->size()), number(batch));
  }
  if (a.entries) {
    DS4_REQUIRE(a.entries->last() == a.ring.last() && a.entries->dims[0] == a.ring.dims[0] && a.entries->dims[1] >= 1,
                "`entries` has shape [%lld, %lld, %lld], expected %lld slots of rows of %lld, as `ring` has them",
                number(a.entries->dims[0]), number(a.entries->dims[1]), number(a.entries->last()), number(a.ring.dims[0]),
                number(a.ring.last()));
    DS4_REQUIRE(a.chosen || a.ratio >= 1, "`ratio` is %lld, expected at least 1", number(a.ratio));
  }
  if (a.chosen) {
    DS4_REQUIRE(a.chosen->rows() == a.num_queries(), "`chosen` has %lld lists, expected one per query, %lld",
                number(a.chosen->rows()), number(a.num_queries()));
  }
  return {};
}

// 64 heads on one read of a row where there are enough blocks of work and the shared memory for it, else fewer.
template <class W16, class W32, class W64>
Status attend_wide(Operands const& a) {
  auto const shared_bytes = static_cast<size_t>(device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, 0));
  int64_t const num_splits = (a.most_keys() + BLOCK - 1) / BLOCK;
  auto const fills = [&](int heads) {
    int64_t const num_blocks = a.num_queries() * ((a.num_heads() + heads - 1) / heads) * num_splits;
    return a.num_heads() >= heads && num_blocks >= device_attribute(cudaDevAttrMultiProcessorCount, LIKELY_MULTIPROCESSORS);
  };
  if (shared_bytes >= sizeof(Shared<W64>) && fills(64)) return attend_by_tiles<W64>(a);
  if (shared_bytes >= sizeof(Shared<W32>) && fills(32)) return attend_by_tiles<W32>(a);
  return attend_by_tiles<W16>(a);
}

Status attend_all(Operands const& a) {
  bool const packed = a.packed();
  switch (a.width()) {
    case 64: return attend_by_tiles<Narrow64>(a);
    case 128: return packed ? attend_by_tiles<Packed128>(a) : attend_by_tiles<Narrow128>(a);
    case 192: return packed ? attend_by_tiles<Packed192>(a) : attend_by_tiles<Narrow192>(a);
    default: return packed ? attend_wide<Packed16, Packed32, Packed64>(a) : attend_wide<Wide16, Wide32, Wide64>(a);
  }
}

template <bool packed>
Status append_all(Operands const& a) {
  append<packed><<<static_cast<unsigned>(a.num_queries()), APPEND_THREADS, 0, a.stream>>>(
      a.kv.as<bf16>(), a.ring_out.as<uint8_t>(), a.slots.as<int64_t>(), a.positions.as<int64_t>(), a.num_new.as<int64_t>(),
      static_cast<int>(a.q.dims[1]), static_cast<int>(a.ring.dims[1]), static_cast<int>(a.width()), static_cast<int>(2 * a.freqs.size()));
  return launched();
}

Status run(Operands const& a) {
  if (Status status = check(a); !status.ok()) return status;
  if (a.num_queries() == 0 || a.num_heads() == 0) return {};
  if (Status status = attend_all(a); !status.ok()) return status;
  return a.packed() ? append_all<true>(a) : append_all<false>(a);
}

// A tile of up to 64 heads from each block of a split launch.
size_t most_workspace(Tensor const& q) {
  return bytes_of_splits(int64_t{MOST_SPLIT_BLOCKS} * std::min<int64_t>(q.dims[2], MOST_HEADS_PER_TILE), q.dims[3]);
}

template <class Args>
Operands operands(Args const& a, Tensor const* entries, Tensor const* chosen, int64_t ratio) {
  return {a.q, a.kv, a.ring, a.sink, a.freqs, a.slots, a.positions, a.num_new, a.o, a.ring_out, entries, chosen,
          a.window, ratio, a.workspace, a.stream};
}

}  // namespace
}  // namespace ds4::sparse_attention

namespace ds4 {

Status attention_window::launch(Args const& a) { return sparse_attention::run(sparse_attention::operands(a, nullptr, nullptr, 0)); }
size_t attention_window::workspace_bytes(Args const& a) { return sparse_attention::most_workspace(a.q); }

Status attention_csa::launch(Args const& a) {
  return sparse_attention::run(sparse_attention::operands(a, &a.entries, &a.chosen, 0));
}
size_t attention_csa::workspace_bytes(Args const& a) { return sparse_attention::most_workspace(a.q); }

Status attention_hca::launch(Args const& a) {
  return sparse_attention::run(sparse_attention::operands(a, &a.entries, nullptr, a.ratio));
}
size_t attention_hca::workspace_bytes(Args const& a) { return sparse_attention::most_workspace(a.q); }

}  // namespace ds4
