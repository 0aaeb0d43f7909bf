// What the two forms of a tile product share: whose rows and tokens a thread has, the ring of stages, the results.
//
//   block = 128 weight rows x 16·NT tokens (of two matrices: 64 rows of each); warp = 32 rows x 8·NT tokens, 4 x 2 warps
//   STAGES chunks in a ring, filled by cp.async, one barrier a chunk
#pragma once
#include "common/tensor_core.cuh"
#include "common/vector.cuh"
#include "common/weight_formats.cuh"

namespace ds4 {

constexpr int TILE_THREADS = 256, TILE_ROWS = 128;

// Where piece p of a row stands, so that 8 lanes meet no bank twice: they read `per_lane` neighbours each, of two rows.
template <int per_lane>
__device__ inline int place_of(int row, int piece) {
  if constexpr (per_lane == 1) return piece;
  if constexpr (per_lane == 2) return piece ^ (row & 1);
  return piece ^ (piece >> 3 & 1) ^ (row & 1) << 1;
}

template <class W, int MATRICES, int NT>
struct TileRows {
  static constexpr int TOKENS = 16 * NT, ROWS_PER_MATRIX = TILE_ROWS / MATRICES;

  Matrix const (&matrix)[MATRICES];
  int const first_row;
  int const thread = static_cast<int>(threadIdx.x), lane = thread % LANES, warp_row = thread / LANES % 4, warp_token = thread / LANES / 4;
  float sum[2][NT][4] = {};

  __device__ TileRows(Matrix const (&m)[MATRICES], int row) : matrix(m), first_row(row) {}

  // Row of the tile -> matrix and row in it. Of two matrices, the two halves of a warp's rows are one of each.
  __device__ Matrix matrix_of(int row) const {
    Matrix m = matrix[0];
    if (MATRICES == 2 && row / 16 % 2) m.codes = matrix[MATRICES - 1].codes, m.scale = matrix[MATRICES - 1].scale;
    return m;
  }
  __device__ int row_in_matrix(int row) const { return first_row + (MATRICES == 1 ? row : row / 32 * 16 + row % 16); }
  __device__ int first_row_of(int tile) const { return warp_row * 32 + tile * 16; }
  __device__ int tile_row(int half, int tile) const { return first_row_of(tile) + lane / QUAD + 8 * half; }
  __device__ int first_token(int t) const { return warp_token * 8 * NT + t * 8; }

  // A chunk of PIECES pieces a row, zeros where the matrix ends; piece p of a row goes to place(row, p).
  template <int PIECES, class Place>
  __device__ void fill_weights(uint4* to, int chunk, Place place) const {
    constexpr int PER_PIECE = 128 / W::BITS;
    for (int i = thread; i < TILE_ROWS * PIECES; i += TILE_THREADS) {
      int const row = i / PIECES, piece = i % PIECES, column = (chunk * PIECES + piece) * PER_PIECE;
      Matrix const m = matrix_of(row);
      bool const exists = row_in_matrix(row) < m.rows && column < m.columns;
      uint8_t const* const from = row_of<W>(m, exists ? row_in_matrix(row) : 0) + (exists ? int64_t{column} * W::BITS / 8 : 0);
      copy_piece(&to[row * PIECES + place(row, piece)], from, exists);
    }
  }

  // store(row, token, value) as in stream_rows
  template <class Store>
  __device__ void put(float unscaled, Store store) const {
#pragma unroll
    for (int t = 0; t < NT; ++t) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        int const token = first_token(t) + lane % QUAD * 2 + i % 2;
#pragma unroll
        for (int tile = 0; tile < (MATRICES == 1 ? 2 : 1); ++tile) {
          int const row = row_in_matrix(tile_row(i / 2, tile));
          if (row >= matrix[0].rows) continue;
          float value[MATRICES];
#pragma unroll
          for (int m = 0; m < MATRICES; ++m) value[m] = sum[MATRICES == 1 ? tile : m][t][i] * unscaled;
          store(row, token, value);
        }
      }
    }
  }
};

// A form brings: Shared `s` of STAGES stages and its `rows` of tokens; fill(stage, chunk), the copies of a chunk; scales_of(chunk),
// zeros beyond the last; multiply(stage, scales), onto `sum`. token_row(i) as in stream_rows.
template <class Form, class TokenRow>
__device__ inline void run_tile(Form& form, TokenRow token_row) {
  constexpr int STAGES = Form::STAGES;
  int const num_chunks = (form.matrix[0].columns + Form::CHUNK - 1) / Form::CHUNK;
  auto const fetch = [&](int chunk) {
    if (chunk < num_chunks) form.fill(chunk % STAGES, chunk);
    commit_copies();
  };
  for (int i = form.thread; i < Form::TOKENS; i += TILE_THREADS) form.s.rows[i] = token_row(i);
  __syncthreads();  // the tokens' rows are known
  for (int i = 0; i < STAGES - 1; ++i) fetch(i);
  auto scales = form.scales_of(0);
  for (int chunk = 0; chunk < num_chunks; ++chunk) {
    auto const next = form.scales_of(chunk + 1);
    wait_copies<STAGES - 2>();
    __syncthreads();  // this chunk is here, and the one before it is used up
    fetch(chunk + STAGES - 1);
    form.multiply(chunk % STAGES, scales);
    scales = next;
  }
}

}  // namespace ds4
