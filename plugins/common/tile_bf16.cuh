// The bf16 form of a tile product: weights kept in shared memory as stored, widened to bf16 in registers.
//
//     a stage                     weights [128, CHUNK] codes | activations [16·NT, CHUNK] bf16
//     a lane's columns            16 B loads of neighbours
//     codes -> bf16               once per chunk, used for all tokens of the warp
//
// Sums: mma over 64 columns in float32, added to the running sum in float32. Whole pieces of 16 B only.
#pragma once
#include "common/tile_rows.cuh"

namespace ds4 {

template <class W, int MATRICES, int NT, int STAGES_>
struct Bf16Tile : TileRows<W, MATRICES, NT> {
  using Rows = TileRows<W, MATRICES, NT>;
  using Rows::lane, Rows::thread, Rows::tile_row, Rows::TOKENS;
  static constexpr int STAGES = STAGES_, CHUNK = W::CHUNK;
  static constexpr int X_PIECES = CHUNK / PIECE, W_PIECES = CHUNK * W::BITS / 128, LANE_PIECES = W::PER_LANE / PIECE;
  static constexpr int LANE_W_PIECES = W::WORDS / 4, STEPS = W::PER_LANE / 4;
  static constexpr int STEPS_AT_ONCE = 4;  // a register each, row and step: 32

  struct Shared {
    uint4 weights[STAGES][TILE_ROWS * W_PIECES];
    uint4 x[STAGES][TOKENS * X_PIECES];
    bf16 const* rows[TOKENS];
  };
  struct Scales {
    uint32_t of[2][2];
  };

  Shared& s;
  int const x_columns;

  __device__ Bf16Tile(Shared& shared, Matrix const (&m)[MATRICES], int row, int columns) : Rows(m, row), s(shared), x_columns(columns) {}

  __device__ void fill(int stage, int chunk) const {
    this->template fill_weights<W_PIECES>(s.weights[stage], chunk, place_of<LANE_W_PIECES>);
    for (int i = thread; i < TOKENS * X_PIECES; i += TILE_THREADS) {
      int const token = i / X_PIECES, piece = i % X_PIECES, column = chunk * CHUNK + piece * PIECE;
      bf16 const* const row = s.rows[token];
      bool const exists = row && column < x_columns;
      void const* const from = exists ? static_cast<void const*>(row + column) : this->matrix[0].codes;
      copy_piece(&s.x[stage][token * X_PIECES + place_of<LANE_PIECES>(token, piece)], from, exists);
    }
  }

  __device__ Scales scales_of(int chunk) const {
    Scales scale;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      int const row = tile_row(i % 2, i / 2), column = chunk * CHUNK + lane % QUAD * W::PER_LANE;
      scale.of[i / 2][i % 2] = scale_byte_of<W>(this->matrix_of(row), this->row_in_matrix(row), column);
    }
    return scale;
  }

  __device__ Words<W::WORDS> weights_at(int stage, int row) const {
    Words<W::WORDS> out;
#pragma unroll
    for (int i = 0; i < LANE_W_PIECES; ++i) {
      uint4 const v = s.weights[stage][row * W_PIECES + place_of<LANE_W_PIECES>(row, lane % QUAD * LANE_W_PIECES + i)];
      out.word[4 * i] = v.x, out.word[4 * i + 1] = v.y, out.word[4 * i + 2] = v.z, out.word[4 * i + 3] = v.w;
    }
    return out;
  }

  // STEPS_AT_ONCE steps: their weights widened once, for all tokens of the warp.
  __device__ void multiply(int stage, Scales const& scale) {
    Words<W::WORDS> held[2][2];
#pragma unroll
    for (int i = 0; i < 4; ++i) held[i / 2][i % 2] = weights_at(stage, tile_row(i % 2, i / 2));
#pragma unroll
    for (int first = 0; first < STEPS; first += STEPS_AT_ONCE) {
      uint32_t a[2][STEPS_AT_ONCE][4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        uint32_t const powers = W::powers(scale.of[i / 2][i % 2]);
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
    int const token = this->first_token(t) + lane / QUAD;
    float part[2][4] = {};
#pragma unroll
    for (int i = 0; i < STEPS_AT_ONCE / 2; ++i) {
      int const piece = lane % QUAD * LANE_PIECES + first / 2 + i;
      uint4 const x = s.x[stage][token * X_PIECES + place_of<LANE_PIECES>(token, piece)];
#pragma unroll
      for (int tile = 0; tile < 2; ++tile) {
        multiply_add(part[tile], a[tile][2 * i], x.x, x.y);
        multiply_add(part[tile], a[tile][2 * i + 1], x.z, x.w);
      }
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) this->sum[i / 4][t][i % 4] += part[i / 4][i % 4];
  }

  template <class TokenRow>
  __device__ void run(TokenRow token_row) {
    run_tile(*this, token_row);
  }
  template <class Store>
  __device__ void finish(Store store) const {
    this->put(W::UNSCALED, store);
  }
};

}  // namespace ds4
