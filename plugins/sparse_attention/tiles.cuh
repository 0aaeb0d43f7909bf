// The launch of one instance of attend(); each is compiled in a file of its own, as they are large.
#pragma once
#include <algorithm>

#include "common/op_table.h"
#include "sparse_attention/sparse_attention.cuh"

namespace ds4::sparse_attention {

constexpr int LIKELY_MULTIPROCESSORS = 132;

// What the three ops have in common, and what some lack.
struct Operands {
  Tensor const &q, &kv, &ring, &sink, &freqs, &slots, &positions, &num_new, &o, &ring_out;
  Tensor const *entries, *chosen;  // null where the op has none
  int64_t window, ratio;
  void* workspace;
  cudaStream_t stream;

  int64_t num_queries() const { return q.range(0, 2); }
  int64_t num_heads() const { return q.dims[2]; }
  int64_t width() const { return q.dims[3]; }
  bool packed() const { return ring.last() != width(); }
  int64_t most_keys() const { return window + (chosen ? chosen->last() : entries ? entries->dims[1] : 0); }
};

inline int device_attribute(cudaDeviceAttr attribute, int otherwise) {
  int device = 0, value = 0;
  bool const known = cudaGetDevice(&device) == cudaSuccess && cudaDeviceGetAttribute(&value, attribute, device) == cudaSuccess;
  return known ? value : otherwise;
}

// How many parts each list is cut into, so that few queries still occupy the GPU; never more than it has blocks.
inline int64_t splits_for(int64_t num_tiles, int64_t most_keys) {
  int64_t const wanted = std::min(device_attribute(cudaDevAttrMultiProcessorCount, LIKELY_MULTIPROCESSORS), MOST_SPLIT_BLOCKS);
  return std::clamp<int64_t>(wanted / num_tiles, 1, (most_keys + BLOCK - 1) / BLOCK);
}

inline size_t bytes_of_splits(int64_t num_rows, int64_t width) {
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
      a.q.as<bf16>(), a.kv.as<bf16>(), a.ring.as<uint8_t>(), a.entries ? a.entries->as<uint8_t>() : nullptr,
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

using Narrow64 = Config<64, 16, 8>;
using Narrow128 = Config<128, 16, 8>;
using Narrow192 = Config<192, 16, 8>;
using Wide16 = Config<512, 16, 4>;  // by the shared memory that a GPU has: 99, 163 and 227 KB
using Wide32 = Config<512, 32, 7>;
using Wide64 = Config<512, 64, 8>;

using Packed128 = Config<128, 16, 8, true>;
using Packed192 = Config<192, 16, 8, true>;
using Packed16 = Config<512, 16, 4, true>;
using Packed32 = Config<512, 32, 7, true>;
using Packed64 = Config<512, 64, 8, true>;

extern template Status attend_by_tiles<Narrow64>(Operands const&);
extern template Status attend_by_tiles<Narrow128>(Operands const&);
extern template Status attend_by_tiles<Narrow192>(Operands const&);
extern template Status attend_by_tiles<Wide16>(Operands const&);
extern template Status attend_by_tiles<Wide32>(Operands const&);
extern template Status attend_by_tiles<Wide64>(Operands const&);
extern template Status attend_by_tiles<Packed128>(Operands const&);
extern template Status attend_by_tiles<Packed192>(Operands const&);
extern template Status attend_by_tiles<Packed16>(Operands const&);
extern template Status attend_by_tiles<Packed32>(Operands const&);
extern template Status attend_by_tiles<Packed64>(Operands const&);

}  // namespace ds4::sparse_attention
