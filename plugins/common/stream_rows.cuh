// Few tokens times many weight rows, bound by the bytes of the weights: they go from global memory to registers, once.
//
//   block = 16 weight rows (of each of MATRICES matrices) x 8·NT tokens; its 8 warps share the columns:
//
//     chunks of a row   | warp 0 | warp 1 | ... | warp 7 | warp 0 | ...      DEPTH of them in flight in a lane's registers
//     mma m16n8k16      rows = 16 weight rows, columns = 8 tokens (absent ones are zeros and cost no memory)
//     sums of 8 warps   shared memory, one barrier, added in the order of the warps
//
// Sums: mma over one chunk (64 or 128 columns) in float32, added to the running sum in float32.
#pragma once
#include "common/tensor_core.cuh"
#include "common/vector.cuh"
#include "common/weight_formats.cuh"

namespace ds4 {

constexpr int STREAM_THREADS = 256, STREAM_WARPS = STREAM_THREADS / LANES;
constexpr int STREAM_ROWS = 16, STREAM_TOKENS = 8;

template <int MATRICES, int NT>
struct StreamSums {
  float of[STREAM_WARPS][MATRICES][NT][4][LANES];
};

// token_row(i): the activations of token i of this block, or null. prepare() stands between the first loads of weights and the
// first use of activations. store(row, token, value): of every row of the matrix and every token, absent ones included.
template <class W, int MATRICES, int NT, bool aligned_weights, bool aligned_x, class Prepare, class TokenRow, class Store>
__device__ inline void stream_rows(Matrix const (&matrix)[MATRICES], int first_row, int x_columns, StreamSums<MATRICES, NT>& sums,
                                   Prepare prepare, TokenRow token_row, Store store) {
  constexpr int DEPTH = !aligned_weights ? 1 : MATRICES * NT > 2 ? 2 : 4, PIECES = W::PER_LANE / PIECE;
  int const thread = static_cast<int>(threadIdx.x), lane = thread % LANES, warp = thread / LANES, row = lane / QUAD;
  int const num_chunks = (matrix[0].columns + W::CHUNK - 1) / W::CHUNK;
  auto const column_of = [&](int chunk) { return chunk * W::CHUNK + lane % QUAD * W::PER_LANE; };
  Words<W::WORDS> held[DEPTH][MATRICES][2];
  uint32_t scale[DEPTH][MATRICES][2];
  auto const fetch = [&](int slot, int chunk) {
#pragma unroll
    for (int m = 0; m < MATRICES; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        int const at = chunk < num_chunks ? first_row + row + 8 * half : matrix[m].rows;
        held[slot][m][half] = words_of<W, aligned_weights>(matrix[m], at, column_of(chunk));
        scale[slot][m][half] = scale_byte_of<W>(matrix[m], at, column_of(chunk));
      }
    }
  };
#pragma unroll
  for (int slot = 0; slot < DEPTH; ++slot) fetch(slot, warp + slot * STREAM_WARPS);
  prepare();
  bf16 const* tokens[NT];
#pragma unroll
  for (int t = 0; t < NT; ++t) tokens[t] = token_row(t * STREAM_TOKENS + row);

  float sum[MATRICES][NT][4] = {};
  auto const multiply = [&](int slot, int chunk) {
    float part[MATRICES][NT][4] = {};
    uint32_t powers[MATRICES][2];
#pragma unroll
    for (int i = 0; i < 2 * MATRICES; ++i) powers[i / 2][i % 2] = W::powers(scale[slot][i / 2][i % 2]);
#pragma unroll
    for (int piece = 0; piece < PIECES; ++piece) {
      Words<4> x[NT];
#pragma unroll
      for (int t = 0; t < NT; ++t) x[t] = activations<aligned_x>(tokens[t], column_of(chunk) + piece * PIECE, x_columns);
#pragma unroll
      for (int step = 0; step < 2; ++step) {
#pragma unroll
        for (int m = 0; m < MATRICES; ++m) {
          uint2 const upper = W::pairs(held[slot][m][0], powers[m][0], 2 * piece + step);
          uint2 const lower = W::pairs(held[slot][m][1], powers[m][1], 2 * piece + step);
          uint32_t const a[4] = {upper.x, lower.x, upper.y, lower.y};
#pragma unroll
          for (int t = 0; t < NT; ++t) multiply_add(part[m][t], a, x[t].word[2 * step], x[t].word[2 * step + 1]);
        }
      }
    }
#pragma unroll
    for (int i = 0; i < MATRICES * NT * 4; ++i) sum[i / 4 / NT][i / 4 % NT][i % 4] += part[i / 4 / NT][i / 4 % NT][i % 4];
  };
  for (int base = warp; base < num_chunks; base += DEPTH * STREAM_WARPS) {
#pragma unroll
    for (int slot = 0; slot < DEPTH; ++slot) {
      int const chunk = base + slot * STREAM_WARPS;
      if (chunk < num_chunks) multiply(slot, chunk);
      fetch(slot, chunk + DEPTH * STREAM_WARPS);
    }
  }

#pragma unroll
  for (int i = 0; i < MATRICES * NT * 4; ++i) sums.of[warp][i / 4 / NT][i / 4 % NT][i % 4][lane] = sum[i / 4 / NT][i / 4 % NT][i % 4];
  __syncthreads();  // the sums of all warps are written
  for (int i = thread; i < NT * 4 * LANES; i += STREAM_THREADS) {
    int const from = i % LANES, part = i / LANES % 4, t = i / LANES / 4;
    float value[MATRICES];
#pragma unroll
    for (int m = 0; m < MATRICES; ++m) {
      value[m] = 0;
#pragma unroll
      for (int w = 0; w < STREAM_WARPS; ++w) value[m] += sums.of[w][m][t][part][from];
      value[m] *= W::UNSCALED;
    }
    int const at = first_row + from / QUAD + part / 2 * 8;
    if (at < matrix[0].rows) store(at, t * STREAM_TOKENS + from % QUAD * 2 + part % 2, value);
  }
}

}  // namespace ds4
