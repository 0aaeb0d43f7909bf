// attention_window, attention_csa, attention_hca: checks, the empty case, tile and splits, then attend [merge] append.
#include <algorithm>

#include "common/op_table.h"
#include "sparse_attention/sparse_attention.cuh"

namespace ds4::sparse_attention {
namespace {

constexpr int MOST_HEADS_PER_TILE = 64;
constexpr int LIKELY_MULTIPROCESSORS = 132;

struct Operands {
  Tensor const &q, &kv, &ring, &sink, &freqs, &slots, &positions, &num_new, &o, &ring_out;
  Tensor const *entries, *chosen;  // null where the op has none
  int64_t window, ratio;
  void* workspace;
  cudaStream_t stream;

  int64_t num_queries() const { return q.range(0, 2); }
  int64_t num_heads() const { return q.dims[2]; }
  int64_t width() const { return q.dims[3]; }
  int64_t most_keys() const { return window + (chosen ? chosen->last() : entries ? entries->dims[1] : 0); }
};

long long number(int64_t value) { return value; }

Status check(Operands const& a) {
  int64_t const batch = a.q.dims[0], tokens = a.q.dims[1], width = a.width();
  DS4_REQUIRE(width == 64 || width == 128 || width == 192 || width == 512,
              "heads of `q` are %lld wide, expected 64, 128, 192 or 512", number(width));
  DS4_REQUIRE(a.kv.dims[0] == batch && a.kv.dims[1] == tokens && a.kv.dims[2] == width,
              "`kv` has shape [%lld, %lld, %lld], expected [%lld, %lld, %lld] as `q` has", number(a.kv.dims[0]),
              number(a.kv.dims[1]), number(a.kv.dims[2]), number(batch), number(tokens), number(width));
  DS4_REQUIRE(a.ring.last() == width, "`ring` has rows of %lld, expected %lld", number(a.ring.last()), number(width));
  DS4_REQUIRE(a.window >= 1 && a.ring.dims[1] - 1 >= a.window,
              "`ring` keeps %lld rows and one of scratch, expected at least the window of %lld", number(a.ring.dims[1] - 1),
              number(a.window));
  DS4_REQUIRE(a.sink.size() == a.num_heads(), "`sink` has %lld values, expected one per head, %lld", number(a.sink.size()),
              number(a.num_heads()));
  DS4_REQUIRE(2 * a.freqs.size() <= width, "`freqs` turns %lld dims, a head has %lld", number(2 * a.freqs.size()), number(width));
  for (Tensor const* rows : {&a.slots, &a.positions, &a.num_new}) {
    DS4_REQUIRE(rows->size() == batch, "`slots`, `positions` and `num_new` have %lld values, expected one per batch row, %lld",
                number(rows->size()), number(batch));
  }
  if (a.entries) {
    DS4_REQUIRE(a.entries->last() == width && a.entries->dims[0] == a.ring.dims[0] && a.entries->dims[1] >= 1,
                "`entries` has shape [%lld, %lld, %lld], expected %lld slots of rows of %lld", number(a.entries->dims[0]),
                number(a.entries->dims[1]), number(a.entries->last()), number(a.ring.dims[0]), number(width));
    DS4_REQUIRE(a.chosen || a.ratio >= 1, "`ratio` is %lld, expected at least 1", number(a.ratio));
  }
  if (a.chosen) {
    DS4_REQUIRE(a.chosen->rows() == a.num_queries(), "`chosen` has %lld lists, expected one per query, %lld",
                number(a.chosen->rows()), number(a.num_queries()));
  }
  return {};
}

int device_attribute(cudaDeviceAttr attribute, int otherwise) {
  int device = 0, value = 0;
  bool const known = cudaGetDevice(&device) == cudaSuccess && cudaDeviceGetAttribute(&value, attribute, device) == cudaSuccess;
  return known ? value : otherwise;
}

// How many parts each list is cut into, so that few queries still occupy the GPU; never more than it has blocks.
int64_t splits_for(int64_t num_tiles, int64_t most_keys) {
  int64_t const wanted = std::min(device_attribute(cudaDevAttrMultiProcessorCount, LIKELY_MULTIPROCESSORS), MOST_SPLIT_BLOCKS);
  return std::clamp<int64_t>(wanted / num_tiles, 1, (most_keys + BLOCK - 1) / BLOCK);
}

size_t bytes_of_splits(int64_t num_rows, int64_t width) {
  return static_cast<size_t>(num_rows) * (static_cast<size_t>(width) * sizeof(float) + sizeof(Stat));
}

template <class C>
Status attend_by_tiles(Operands const& a) {
  int64_t const num_tiles = a.num_queries() * ((a.num_heads() + C::HEADS - 1) / C::HEADS);
  int64_t const num_splits = splits_for(num_tiles, a.most_keys()), num_rows = a.num_queries() * num_splits * a.num_heads();
  auto* const values = num_splits > 1 ? static_cast<float*>(a.workspace) : nullptr;
  auto* const stats = values ? reinterpret_cast<Stat*>(values + num_rows * C::WIDTH) : nullptr;
  int const num_tokens = static_cast<int>(a.q.dims[1]), num_heads = static_cast<int>(a.num_heads());
  int const num_freqs = static_cast<int>(a.freqs.size());
  constexpr int shared_bytes = sizeof(Shared<C>);
  cudaError_t const code = cudaFuncSetAttribute(attend<C>, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
  DS4_REQUIRE(code == cudaSuccess, "%d bytes of shared memory: %s", shared_bytes, cudaGetErrorString(code));
  dim3 const grid(static_cast<unsigned>(num_tiles), static_cast<unsigned>(num_splits));
  attend<C><<<grid, THREADS, shared_bytes, a.stream>>>(
      a.q.as<bf16>(), a.kv.as<bf16>(), a.ring.as<bf16>(), a.entries ? a.entries->as<bf16>() : nullptr,
      a.chosen ? a.chosen->as<int64_t>() : nullptr, a.sink.as<float>(), a.freqs.as<float>(), a.slots.as<int64_t>(),
      a.positions.as<int64_t>(), a.num_new.as<int64_t>(), a.o.as<bf16>(), values, stats, num_tokens, num_heads, num_freqs,
      static_cast<int>(a.window), static_cast<int>(a.ring.dims[1]), a.entries ? static_cast<int>(a.entries->dims[1]) : 0,
      a.chosen ? static_cast<int>(a.chosen->last()) : 0, static_cast<int>(a.ratio));
  if (Status status = launched(); !status.ok() || !values) return status;
  merge<C::WIDTH><<<static_cast<unsigned>(a.num_queries() * num_heads), MERGE_THREADS, 0, a.stream>>>(
      values, stats, a.sink.as<float>(), a.freqs.as<float>(), a.positions.as<int64_t>(), a.num_new.as<int64_t>(), a.o.as<bf16>(),
      num_tokens, num_heads, num_freqs, static_cast<int>(num_splits));
  return launched();
}

// 64 heads on one read of a row where there are enough blocks of work and the shared memory for it, else fewer.
Status attend_wide(Operands const& a) {
  using Tile64 = Config<512, 64, 8>;
  using Tile32 = Config<512, 32, 7>;
  using Tile16 = Config<512, 16, 4>;
  auto const shared_bytes = static_cast<size_t>(device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, 0));
  int64_t const num_splits = (a.most_keys() + BLOCK - 1) / BLOCK;
  auto const fills = [&](int heads) {
    int64_t const num_blocks = a.num_queries() * ((a.num_heads() + heads - 1) / heads) * num_splits;
    return a.num_heads() >= heads && num_blocks >= device_attribute(cudaDevAttrMultiProcessorCount, LIKELY_MULTIPROCESSORS);
  };
  if (shared_bytes >= sizeof(Shared<Tile64>) && fills(64)) return attend_by_tiles<Tile64>(a);
  if (shared_bytes >= sizeof(Shared<Tile32>) && fills(32)) return attend_by_tiles<Tile32>(a);
  return attend_by_tiles<Tile16>(a);
}

Status attend_all(Operands const& a) {
  switch (a.width()) {
    case 64: return attend_by_tiles<Config<64, 16, 8>>(a);
    case 128: return attend_by_tiles<Config<128, 16, 8>>(a);
    case 192: return attend_by_tiles<Config<192, 16, 8>>(a);
    default: return attend_wide(a);
  }
}

Status run(Operands const& a) {
  if (Status status = check(a); !status.ok()) return status;
  if (a.num_queries() == 0 || a.num_heads() == 0) return {};
  if (Status status = attend_all(a); !status.ok()) return status;
  append<<<static_cast<unsigned>(a.num_queries()), APPEND_THREADS, 0, a.stream>>>(
      a.kv.as<bf16>(), a.ring_out.as<bf16>(), a.slots.as<int64_t>(), a.positions.as<int64_t>(), a.num_new.as<int64_t>(),
      static_cast<int>(a.q.dims[1]), static_cast<int>(a.ring.dims[1]), static_cast<int>(a.width()));
  return launched();
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
