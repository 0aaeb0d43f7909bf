// indexer_topk: checks, the empty case, splits, then score [merge ...].
#include <algorithm>
#include <cmath>

#include "common/op_table.h"
#include "indexer_topk/indexer_topk.cuh"

namespace ds4::indexer_topk {
namespace {

constexpr int MOST_SPLIT_BLOCKS = 384;  // two on every multiprocessor of any GPU meant; a constant, as workspace depends on it
constexpr int LIKELY_MULTIPROCESSORS = 132;
constexpr int FAN_IN = 16;

long long number(int64_t value) { return value; }

Status check(Args const& a) {
  int64_t const batch = a.q.dims[0], tokens = a.q.dims[1], heads = a.q.dims[2], width = a.q.dims[3];
  DS4_REQUIRE((width == 32 && heads <= 16) || (width == 128 && heads <= 64),
              "`q` has %lld heads of %lld, expected up to 16 of 32 or up to 64 of 128", number(heads), number(width));
  DS4_REQUIRE(a.weights.dims[0] == batch && a.weights.dims[1] == tokens && a.weights.dims[2] == heads,
              "`weights` has shape [%lld, %lld, %lld], expected [%lld, %lld, %lld] as `q` has", number(a.weights.dims[0]),
              number(a.weights.dims[1]), number(a.weights.dims[2]), number(batch), number(tokens), number(heads));
  int64_t const num_bytes = packed_key_bytes(static_cast<int>(width));
  DS4_REQUIRE(a.keys.last() == width || (width == 128 && a.keys.last() == num_bytes),
              "`keys` has rows of %lld, expected %lld values or, of 128, %lld bytes", number(a.keys.last()), number(width),
              number(num_bytes));
  DS4_REQUIRE(a.keys.dims[1] >= 1, "`keys` has no row of scratch");
  for (Tensor const* rows : {&a.slots, &a.positions, &a.num_new}) {
    DS4_REQUIRE(rows->size() == batch, "`slots`, `positions` and `num_new` have %lld values, expected one per batch row, %lld",
                number(rows->size()), number(batch));
  }
  DS4_REQUIRE(a.k >= 1 && a.k <= MOST_CHOSEN, "`k` is %lld, expected 1 to %d", number(a.k), MOST_CHOSEN);
  DS4_REQUIRE(a.ratio >= 1, "`ratio` is %lld, expected at least 1", number(a.ratio));
  return {};
}

int num_multiprocessors() {
  int device = 0, value = 0;
  bool const known = cudaGetDevice(&device) == cudaSuccess &&
                     cudaDeviceGetAttribute(&value, cudaDevAttrMultiProcessorCount, device) == cudaSuccess;
  return known ? value : LIKELY_MULTIPROCESSORS;
}

// Parts of each query's keys, so that few queries still occupy the GPU; a part is at least a tile.
int splits_for(int64_t num_queries, int64_t most_keys) {
  int64_t const wanted = std::min(2 * num_multiprocessors(), MOST_SPLIT_BLOCKS) / num_queries;
  return static_cast<int>(std::clamp<int64_t>(wanted, 1, std::max<int64_t>(1, (most_keys + TILE - 1) / TILE)));
}

// Lists of candidates with their counts, for every split of every query of a launch.
struct Lists {
  Candidate* candidates;
  int32_t* counts;

  static size_t bytes(int64_t num_lists, int64_t k) {
    return static_cast<size_t>(num_lists) * (static_cast<size_t>(k) * sizeof(Candidate) + sizeof(int32_t));
  }
  static Lists at(void* memory, int64_t num_lists, int64_t k) {
    auto* const candidates = static_cast<Candidate*>(memory);
    return {candidates, reinterpret_cast<int32_t*>(candidates + num_lists * k)};
  }
};

template <class C>
Status score_all(Args const& a, int num_splits, Lists lists) {
  constexpr int shared_bytes = sizeof(Shared<C>);
  cudaError_t const code = cudaFuncSetAttribute(score<C>, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
  DS4_REQUIRE(code == cudaSuccess, "%d bytes of shared memory: %s", shared_bytes, cudaGetErrorString(code));
  dim3 const grid(static_cast<unsigned>(a.q.range(0, 2)), static_cast<unsigned>(num_splits));
  auto const root = static_cast<float>(std::pow(static_cast<double>(a.q.dims[2] * a.q.dims[3]), -0.5));
  score<C><<<grid, THREADS, shared_bytes, a.stream>>>(
      a.q.as<bf16>(), a.weights.as<bf16>(), a.keys.as<uint8_t>(), a.slots.as<int64_t>(), a.positions.as<int64_t>(),
      a.num_new.as<int64_t>(), a.chosen.as<int64_t>(), lists.candidates, lists.counts, root, static_cast<int>(a.q.dims[1]),
      static_cast<int>(a.q.dims[2]), static_cast<int>(a.keys.dims[1]), static_cast<int>(a.k), static_cast<int>(a.ratio));
  return launched();
}

template <bool packed>
Status score_by_heads(Args const& a, int num_splits, Lists lists) {
  return a.q.dims[2] <= 16 ? score_all<Config<128, 16, packed>>(a, num_splits, lists)
                           : score_all<Config<128, 64, packed>>(a, num_splits, lists);
}

Status score_by_shape(Args const& a, int num_splits, Lists lists) {
  if (a.q.dims[3] == 32) return score_all<Config<32, 16>>(a, num_splits, lists);
  return a.keys.last() == a.q.dims[3] ? score_by_heads<false>(a, num_splits, lists) : score_by_heads<true>(a, num_splits, lists);
}

Status merge_all(Args const& a, int num_parts, Lists from, Lists to) {
  int64_t const num_queries = a.q.range(0, 2);
  for (;;) {
    int const num_left = (num_parts + FAN_IN - 1) / FAN_IN;
    bool const last = num_left == 1;
    merge<<<dim3(static_cast<unsigned>(num_queries), static_cast<unsigned>(num_left)), THREADS, 0, a.stream>>>(
        from.candidates, from.counts, a.chosen.as<int64_t>(), last ? nullptr : to.candidates, to.counts, num_parts, FAN_IN,
        static_cast<int>(a.k));
    if (Status status = launched(); !status.ok() || last) return status;
    std::swap(from, to);
    num_parts = num_left;
  }
}

}  // namespace

Status launch(Args const& a) {
  if (Status status = check(a); !status.ok()) return status;
  int64_t const num_queries = a.q.range(0, 2);
  if (num_queries == 0) return {};
  int const num_splits = splits_for(num_queries, a.keys.dims[1] - 1);
  if (num_splits == 1) return score_by_shape(a, 1, {nullptr, nullptr});
  int64_t const num_lists = num_queries * num_splits;
  Lists const lists = Lists::at(a.workspace, num_lists, a.k);
  // a round of merge() leaves fewer lists than there were
  Lists const others = Lists::at(static_cast<char*>(a.workspace) + Lists::bytes(num_lists, a.k), num_lists, a.k);
  if (Status status = score_by_shape(a, num_splits, lists); !status.ok()) return status;
  return merge_all(a, num_splits, lists, others);
}

size_t workspace_bytes(Args const& a) { return 2 * Lists::bytes(MOST_SPLIT_BLOCKS, a.k); }

}  // namespace ds4::indexer_topk
