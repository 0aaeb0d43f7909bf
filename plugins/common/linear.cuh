// The kernels of the linears, and which of them a shape gets. An op brings a struct:
//
//   Weight        Bf16Weight or Fp8Weight (weight_formats.cuh)
//   Result        bf16 or float
//   MATRICES      1, or 2 whose products of a row meet in one result
//   QUANTISED     whether activations go through A8(128) first
//   result()      the float32 result of the sums
//
// Its name is in the kernels' names, so that reports tell the ops apart.
#pragma once
#include <algorithm>

#include "common/a8.cuh"
#include "common/grid.h"
#include "common/stream_rows.cuh"
#include "common/tensor.h"
#include "common/tile_product.cuh"

namespace ds4 {

// Tokens [num_tokens, groups·columns], of which group g takes its part, times rows g·rows .. of the matrix.
struct Linear {
  Matrix matrix;  // of one group
  bf16 const* x;
  int64_t num_tokens;
  int x_columns, groups;  // columns of x as it stands in memory, padded or not, of one group
  void* y;
  uint8_t const* second_codes = nullptr;  // of a second matrix of the same shape
  uint8_t const* second_scale = nullptr;
  float limit = 0;

  template <class Op>
  __device__ void matrices(int group, Matrix (&out)[Op::MATRICES]) const {
    int64_t const offset = int64_t{group} * matrix.rows * matrix.columns * Op::Weight::BITS / 8;
    out[0] = {matrix.codes + offset, matrix.scale, matrix.rows, matrix.columns, group * matrix.rows};
    if constexpr (Op::MATRICES == 2) out[1] = {second_codes + offset, second_scale, matrix.rows, matrix.columns, group * matrix.rows};
  }
  __device__ bf16 const* token(int64_t i, int group) const {
    return i < num_tokens ? x + (i * groups + group) * x_columns : nullptr;
  }
  template <class Op>
  __device__ void put(int64_t token, int group, int row, float const (&value)[Op::MATRICES]) const {
    if (token >= num_tokens) return;
    auto* const to = static_cast<typename Op::Result*>(y) + (token * groups + group) * matrix.rows + row;
    if constexpr (sizeof(typename Op::Result) == sizeof(float)) *to = Op::result(value, limit);
    else *to = bf16_from(Op::result(value, limit));
  }
};

// What most linears are: one matrix, the sum as it is.
template <class W, class T, bool quantised>
struct PlainLinear {
  using Weight = W;
  using Result = T;
  static constexpr int MATRICES = 1;
  static constexpr bool QUANTISED = quantised;
  __device__ static float result(float const (&value)[1], float) { return value[0]; }
};

constexpr int X_GAP = PIECE;  // between tokens in shared memory: their rows start in other banks

template <class Op>
using LinearTile = TileProduct<typename Op::Weight, Op::MATRICES, 8, Op::Weight::BITS == 16 ? 3 : 4, Op::QUANTISED>;

}  // namespace ds4

// Beside namespace ds4: so a kernel's mangled name spells the op's namespace in full, by which the checks find its file.
namespace ds4_linear {

using namespace ds4;

// Grid: rows / 16 x tokens / 8·NT x groups. `quantise`: x is quantised by this block, into dynamic shared memory.
template <class Op, int NT, bool aligned, bool quantise>
__global__ void __launch_bounds__(STREAM_THREADS, 1) stream(Linear const a) {
  using W = typename Op::Weight;
  extern __shared__ __align__(16) unsigned char raw[];
  __shared__ StreamSums<Op::MATRICES, NT> sums;
  int const group = static_cast<int>(blockIdx.z), padded = (a.x_columns + A8_BLOCK - 1) / A8_BLOCK * A8_BLOCK;
  int64_t const first = int64_t{blockIdx.y} * (STREAM_TOKENS * NT);
  auto* const own = reinterpret_cast<bf16*>(raw);
  Matrix matrix[Op::MATRICES];
  a.matrices<Op>(group, matrix);
  stream_rows<W, Op::MATRICES, NT, aligned, aligned || Op::QUANTISED>(
      matrix, static_cast<int>(blockIdx.x) * STREAM_ROWS, quantise ? padded : a.x_columns, sums,
      [&] {
        if constexpr (quantise) {
          int const warp = static_cast<int>(threadIdx.x) / LANES, blocks = padded / A8_BLOCK;
          int const num = static_cast<int>(min(a.num_tokens - first, int64_t{STREAM_TOKENS * NT}));
          for (int i = warp; i < num * blocks; i += STREAM_WARPS) {
            quantise_block<false>(a.token(first + i / blocks, group), i % blocks * A8_BLOCK, a.x_columns, own + i / blocks * (padded + X_GAP),
                                  false);
          }
          __syncthreads();  // the activations are quantised
        }
      },
      [&](int i) -> bf16 const* {
        if constexpr (quantise) return first + i < a.num_tokens ? own + i * (padded + X_GAP) : nullptr;
        else return a.token(first + i, group);
      },
      [&](int row, int i, float const(&value)[Op::MATRICES]) { a.put<Op>(first + i, group, row, value); });
}

// Grid: rows / 128 (of two matrices: / 64) x tokens / 128 x groups.
template <class Op>
__global__ void __launch_bounds__(TILE_THREADS, 1) tiles(Linear const a) {
  using Tile = typename LinearTile<Op>::Here;
  extern __shared__ __align__(16) unsigned char raw[];
  int const group = static_cast<int>(blockIdx.z);
  int64_t const first = int64_t{blockIdx.y} * Tile::TOKENS;
  Matrix matrix[Op::MATRICES];
  a.matrices<Op>(group, matrix);
  Tile tile(*reinterpret_cast<typename Tile::Shared*>(raw), matrix, static_cast<int>(blockIdx.x) * Tile::ROWS_PER_MATRIX, a.x_columns);
  tile.run([&](int i) { return a.token(first + i, group); });
  tile.finish([&](int row, int i, float const(&value)[Op::MATRICES]) { a.put<Op>(first + i, group, row, value); });
}

// Grid: blocks of 128 columns of all tokens, a warp each.
template <class Op>
__global__ void __launch_bounds__(QUANTISE_THREADS)
    quantise(bf16 const* x, bf16* out, int64_t num_tokens, int columns, int padded, bool for_tiles) {
  constexpr int WARPS = QUANTISE_THREADS / LANES;
  quantise_rows<false>(x, out, num_tokens, columns, padded, int64_t{blockIdx.x} * WARPS + threadIdx.x / LANES, int64_t{gridDim.x} * WARPS,
                       for_tiles);
}

}  // namespace ds4_linear

namespace ds4 {

constexpr int64_t MOST_STREAMED_TOKENS = 32;  // up to here the weights' bytes are the bound on every GPU meant
constexpr int64_t MOST_GRID_Y = 65535;
constexpr size_t SHARED_WITHOUT_ASKING = 48 << 10;

inline size_t quantised_bytes(int64_t num_tokens, int64_t columns) {
  return static_cast<size_t>(num_tokens * padded_to_a8(columns)) * sizeof(bf16);
}

template <class Op, int NT, bool aligned, bool quantised_here>
Status launch_stream(Linear const& a, size_t shared_bytes, cudaStream_t stream_of_work) {
  int64_t const tokens = (a.num_tokens + STREAM_TOKENS * NT - 1) / (STREAM_TOKENS * NT);
  DS4_REQUIRE(tokens <= MOST_GRID_Y, "%lld tokens of rows that are not whole pieces of 16 bytes, expected at most %lld",
              static_cast<long long>(a.num_tokens), static_cast<long long>(MOST_GRID_Y * STREAM_TOKENS * NT));
  dim3 const grid(static_cast<unsigned>((a.matrix.rows + STREAM_ROWS - 1) / STREAM_ROWS), static_cast<unsigned>(tokens),
                  static_cast<unsigned>(a.groups));
  ds4_linear::stream<Op, NT, aligned, quantised_here><<<grid, STREAM_THREADS, shared_bytes, stream_of_work>>>(a);
  return launched();
}

template <class Op>
Status launch_tiles(Linear const& a, cudaStream_t stream_of_work) {
  using Tile = LinearTile<Op>;
  constexpr int shared_bytes = Tile::SHARED_BYTES;
  cudaError_t const code = cudaFuncSetAttribute(ds4_linear::tiles<Op>, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
  DS4_REQUIRE(code == cudaSuccess, "%d bytes of shared memory: %s", shared_bytes, cudaGetErrorString(code));
  dim3 const grid(static_cast<unsigned>((a.matrix.rows + Tile::ROWS_PER_MATRIX - 1) / Tile::ROWS_PER_MATRIX),
                  static_cast<unsigned>((a.num_tokens + Tile::TOKENS - 1) / Tile::TOKENS), static_cast<unsigned>(a.groups));
  ds4_linear::tiles<Op><<<grid, TILE_THREADS, shared_bytes, stream_of_work>>>(a);
  return launched();
}

// Few tokens are streamed against, many go in tiles; rows that are not whole pieces are streamed whatever their number.
template <class Op>
Status launch_linear(Linear a, void* workspace, cudaStream_t stream_of_work) {
  using W = typename Op::Weight;
  if (a.num_tokens == 0 || a.matrix.rows == 0) return {};
  bool const aligned = a.matrix.columns * W::BITS % 128 == 0, in_tiles = aligned && a.num_tokens > MOST_STREAMED_TOKENS;
  if constexpr (Op::QUANTISED) {
    size_t const shared_bytes = static_cast<size_t>(a.num_tokens * (padded_to_a8(a.x_columns) + X_GAP)) * sizeof(bf16);
    if (aligned && a.num_tokens <= STREAM_TOKENS && shared_bytes + sizeof(StreamSums<Op::MATRICES, 1>) <= SHARED_WITHOUT_ASKING) {
      return launch_stream<Op, 1, true, true>(a, shared_bytes, stream_of_work);
    }
    int const padded = padded_to_a8(a.x_columns);
    auto* const quantised = static_cast<bf16*>(workspace);
    constexpr int WARPS = QUANTISE_THREADS / LANES;
    ds4_linear::quantise<Op><<<blocks_for(a.num_tokens * (padded / A8_BLOCK), WARPS), QUANTISE_THREADS, 0, stream_of_work>>>(
        a.x, quantised, a.num_tokens, a.x_columns, padded, in_tiles);
    if (Status status = launched(); !status.ok()) return status;
    a.x = quantised, a.x_columns = padded;
  }
  if (in_tiles) return launch_tiles<Op>(a, stream_of_work);
  if (!aligned) return launch_stream<Op, 1, false, false>(a, 0, stream_of_work);
  if (a.num_tokens <= STREAM_TOKENS) return launch_stream<Op, 1, true, false>(a, 0, stream_of_work);
  return launch_stream<Op, 4, true, false>(a, 0, stream_of_work);
}

}  // namespace ds4
