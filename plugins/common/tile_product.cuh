// Many tokens times weight rows: tiles in shared memory, filled by cp.async, weights kept there as stored.
//
//   block = 128 weight rows x 16·NT tokens (of two matrices: 64 rows of each); warp = 32 rows x 8·NT tokens, 4 x 2 warps
//
//     STAGES chunks in a ring     weights [128, CHUNK] codes | activations [16·NT, CHUNK] bf16      one barrier a chunk
//     a lane's columns            16 B loads; pieces of a row stand where 8 lanes meet no bank twice
//     codes -> bf16               in registers, once per chunk, used for all tokens of the warp
//
// Sums: mma over 64 columns in float32, added to the running sum in float32. Whole pieces of 16 B only.
#pragma once
#include "common/tensor_core.cuh"
#include "common/vector.cuh"
#include "common/weight_formats.cuh"

namespace ds4 {

constexpr int TILE_THREADS = 256, TILE_ROWS = 128;

template <class W, int MATRICES, int NT, int STAGES_>
struct TileProduct {
  static constexpr int STAGES = STAGES_, TOKENS = 16 * NT, ROWS_PER_MATRIX = TILE_ROWS / MATRICES;
  static constexpr int X_PIECES = W::CHUNK / PIECE, W_PIECES = W::CHUNK * W::BITS / 128, LANE_PIECES = W::PER_LANE / PIECE;
  static constexpr int LANE_W_PIECES = W::WORDS / 4, STEPS = W::PER_LANE / 4;
  static constexpr int STEPS_AT_ONCE = 4;  // a register each, row and step: 32

  struct Shared {
    uint4 weights[STAGES][TILE_ROWS * W_PIECES];
    uint4 x[STAGES][TOKENS * X_PIECES];
    bf16 const* rows[TOKENS];
  };

  // Where piece p of a row stands; a lane reads `per_lane` neighbours.
  template <int per_lane>
  __device__ static int place(int row, int piece) {
    if constexpr (per_lane == 1) return piece;
    if constexpr (per_lane == 2) return piece ^ (row & 1);
    return piece ^ (piece >> 3 & 1) ^ (row & 1) << 1;
  }

  Shared& s;
  Matrix const (&matrix)[MATRICES];
  int const first_row, x_columns;
  int const thread = static_cast<int>(threadIdx.x), lane = thread % LANES, warp_row = thread / LANES % 4, warp_token = thread / LANES / 4;
  float sum[2][NT][4] = {};

  __device__ TileProduct(Shared& shared, Matrix const (&m)[MATRICES], int row, int columns)
      : s(shared), matrix(m), first_row(row), x_columns(columns) {}

  // Row of the tile -> matrix and row in it. Of two matrices, the two halves of a warp's rows are one of each.
  __device__ Matrix matrix_of(int row) const {
    Matrix m = matrix[0];
    if (MATRICES == 2 && row / 16 % 2) m.codes = matrix[MATRICES - 1].codes, m.scale = matrix[MATRICES - 1].scale;
    return m;
  }
  __device__ int row_in_matrix(int row) const { return first_row + (MATRICES == 1 ? row : row / 32 * 16 + row % 16); }

  __device__ void fill(int chunk, int num_chunks) const {
    if (chunk < num_chunks) {
      int const stage = chunk % STAGES;
      for (int i = thread; i < TILE_ROWS * W_PIECES; i += TILE_THREADS) {
        int const row = i / W_PIECES, piece = i % W_PIECES, column = chunk * W::CHUNK + piece * (128 / W::BITS);
        Matrix const m = matrix_of(row);
        bool const exists = row_in_matrix(row) < m.rows && column < m.columns;
        uint8_t const* const from = row_of<W>(m, exists ? row_in_matrix(row) : 0) + (exists ? int64_t{column} * W::BITS / 8 : 0);
        copy_piece(&s.weights[stage][row * W_PIECES + place<LANE_W_PIECES>(row, piece)], from, exists);
      }
      for (int i = thread; i < TOKENS * X_PIECES; i += TILE_THREADS) {
        int const token = i / X_PIECES, piece = i % X_PIECES, column = chunk * W::CHUNK + piece * PIECE;
        bf16 const* const row = s.rows[token];
        bool const exists = row && column < x_columns;
        void const* const from = exists ? static_cast<void const*>(row + column) : matrix[0].codes;
        copy_piece(&s.x[stage][token * X_PIECES + place<LANE_PIECES>(token, piece)], from, exists);
      }
    }
    commit_copies();
  }

  __device__ int tile_row(int half, int tile) const { return warp_row * 32 + tile * 16 + lane / QUAD + 8 * half; }

  __device__ void read_scales(uint32_t (&scale)[2][2], int chunk) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      int const row = tile_row(i % 2, i / 2);
      scale[i / 2][i % 2] = scale_byte_of<W>(matrix_of(row), row_in_matrix(row), chunk * W::CHUNK + lane % QUAD * W::PER_LANE);
    }
  }

  __device__ Words<W::WORDS> weights_at(int stage, int row) const {
    Words<W::WORDS> out;
#pragma unroll
    for (int i = 0; i < LANE_W_PIECES; ++i) {
      uint4 const v = s.weights[stage][row * W_PIECES + place<LANE_W_PIECES>(row, lane % QUAD * LANE_W_PIECES + i)];
      out.word[4 * i] = v.x, out.word[4 * i + 1] = v.y, out.word[4 * i + 2] = v.z, out.word[4 * i + 3] = v.w;
    }
    return out;
  }

  // STEPS_AT_ONCE steps: their weights widened once, for all tokens of the warp.
  __device__ void multiply(int stage, uint32_t const (&scale)[2][2]) {
    Words<W::WORDS> held[2][2];
#pragma unroll
    for (int i = 0; i < 4; ++i) held[i / 2][i % 2] = weights_at(stage, tile_row(i % 2, i / 2));
#pragma unroll
    for (int first = 0; first < STEPS; first += STEPS_AT_ONCE) {
      uint32_t a[2][STEPS_AT_ONCE][4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        uint32_t const powers = W::powers(scale[i / 2][i % 2]);
#pragma unroll
        for (int step = 0; step < STEPS_AT_ONCE; ++step) {
          uint2 const pairs = W::pairs(held[i / 2][i % 2], powers, first + step);
          a[i / 2][step][i % 2] = pairs.x;
          a[i / 2][step][2 + i % 2] = pairs.y;
        }
      }
#pragma unroll
      for (int t = 0; t < NT; ++t) multiply_tokens(stage, first, t, a);
    }
  }

  __device__ void multiply_tokens(int stage, int first, int t, uint32_t const (&a)[2][STEPS_AT_ONCE][4]) {
    int const token = warp_token * 8 * NT + t * 8 + lane / QUAD;
    float part[2][4] = {};
#pragma unroll
    for (int i = 0; i < STEPS_AT_ONCE / 2; ++i) {
      int const piece = lane % QUAD * LANE_PIECES + first / 2 + i;
      uint4 const x = s.x[stage][token * X_PIECES + place<LANE_PIECES>(token, piece)];
#pragma unroll
      for (int tile = 0; tile < 2; ++tile) {
        multiply_add(part[tile], a[tile][2 * i], x.x, x.y);
        multiply_add(part[tile], a[tile][2 * i + 1], x.z, x.w);
      }
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) sum[i / 4][t][i % 4] += part[i / 4][i % 4];
  }

  // token_row(i) as in stream_rows
  template <class TokenRow>
  __device__ void run(TokenRow token_row) {
    int const num_chunks = (matrix[0].columns + W::CHUNK - 1) / W::CHUNK;
    for (int i = thread; i < TOKENS; i += TILE_THREADS) s.rows[i] = token_row(i);
    __syncthreads();  // the tokens' rows are known
    for (int i = 0; i < STAGES - 1; ++i) fill(i, num_chunks);
    uint32_t scale[2][2], next[2][2];
    read_scales(scale, 0);
    for (int chunk = 0; chunk < num_chunks; ++chunk) {
      read_scales(next, chunk + 1);
      wait_copies<STAGES - 2>();
      __syncthreads();  // this chunk is here, and the one before it is used up
      fill(chunk + STAGES - 1, num_chunks);
      multiply(chunk % STAGES, scale);
#pragma unroll
      for (int i = 0; i < 4; ++i) scale[i / 2][i % 2] = next[i / 2][i % 2];
    }
  }

  // store(row, token, value) as in stream_rows
  template <class Store>
  __device__ void finish(Store store) const {
#pragma unroll
    for (int t = 0; t < NT; ++t) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        int const token = warp_token * 8 * NT + t * 8 + lane % QUAD * 2 + i % 2;
#pragma unroll
        for (int tile = 0; tile < (MATRICES == 1 ? 2 : 1); ++tile) {
          int const row = row_in_matrix(tile_row(i / 2, tile));
          if (row >= matrix[0].rows) continue;
          float value[MATRICES];
#pragma unroll
          for (int m = 0; m < MATRICES; ++m) value[m] = sum[MATRICES == 1 ? tile : m][t][i] * W::UNSCALED;
          store(row, token, value);
        }
      }
    }
  }
};

}  // namespace ds4
