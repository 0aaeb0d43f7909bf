// The e4m3 form of a tile product, of activations that a8.cuh left as codes: mma m16n8k32 of e4m3 on both sides.
//
//     a stage, 128 columns        weights [128, 128] codes as stored | activations [16·NT, 128] codes, a float32 scale per token
//     e4m3 weights                operands as they lie: a lane owns 32 neighbours of a row, eight to each mma
//     e2m1 weights                ldmatrix gives a lane eight neighbours of each block of 32; even codes to one operand, odd to the
//                                 other, as e4m3 of 2^-6 of the value: sign and magnitude move, subnormals included
//     an mma                      one block of e2m1 weights, a quarter of a tile of e4m3 weights
//
// Sums: mma over 128 columns (e2m1: 32) times the weights' scale, over 128 columns times the tokens', all in float32. Products are
// exact. Tensor cores add those of one mma with fewer bits than float32 has (docs/kernels/README.md): what that can cost ends with
// these 128 or 32 columns.
// Scales: the tokens' are 2^-32 of what they mean, so that no product of scales overflows; `UNSCALED` undoes it. Weight scales of
// 2^-126 to 2^127 are exact here. Scale 255, weight codes 0x7f and 0xff, and activations that are no numbers give NaN.
#pragma once
#include "common/a8.cuh"
#include "common/tile_rows.cuh"

namespace ds4 {

// The operand of 16 weight rows in step i of a chunk: a[i], of rows lane/4 and lane/4 + 8.
template <class W>
struct E4m3Operand;

template <>
struct E4m3Operand<Fp8Weight> {
  static constexpr int STEPS_PER_SCALE = 4;
  static constexpr float UNSCALED = 1;
  static constexpr int PIECES = 8;
  __device__ static int place(int row, int piece) { return place_of<2>(row, piece); }
  __device__ static void load(uint32_t (&a)[4][4], uint4 const* codes, int first_row, int lane) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      int const row = first_row + lane / QUAD + 8 * half;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        uint4 const v = codes[row * PIECES + place(row, lane % QUAD * 2 + i)];
        a[2 * i][half] = v.x, a[2 * i][2 + half] = v.y, a[2 * i + 1][half] = v.z, a[2 * i + 1][2 + half] = v.w;
      }
    }
  }
};

template <>
struct E4m3Operand<Fp4Weight> {
  static constexpr int STEPS_PER_SCALE = 1;
  static constexpr float UNSCALED = 0x1p6f;
  static constexpr int PIECES = 4;
  __device__ static int place(int row, int piece) { return piece ^ (row >> 1 & 3); }  // 8 rows of a matrix meet no bank twice
  __device__ static void load(uint32_t (&a)[4][4], uint4 const* codes, int first_row, int lane) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      int const row = first_row + 8 * half + lane % 8;
      uint32_t eight[4];
      load_matrices(eight, &codes[row * PIECES + place(row, lane / 8)]);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        a[i][half] = (eight[i] << 4 & 0x80808080u) | (eight[i] << 2 & 0x1c1c1c1cu);
        a[i][2 + half] = (eight[i] & 0x80808080u) | (eight[i] >> 2 & 0x1c1c1c1cu);
      }
    }
  }
};

template <class W, int MATRICES, int NT>
struct E4m3Tile : TileRows<W, MATRICES, NT> {
  using Rows = TileRows<W, MATRICES, NT>;
  using Operand = E4m3Operand<W>;
  using Rows::lane, Rows::thread, Rows::tile_row, Rows::TOKENS;
  static constexpr int STAGES = 3, CHUNK = A8_BLOCK, STEPS = CHUNK / 32;
  static constexpr int X_PIECES = CHUNK / 16, SCALES = STEPS / Operand::STEPS_PER_SCALE;

  struct Shared {
    uint4 weights[STAGES][TILE_ROWS * Operand::PIECES];
    uint4 x[STAGES][TOKENS * X_PIECES];
    float x_scale[STAGES][TOKENS];
    bf16 const* rows[TOKENS];
  };
  // Of the lane's rows lane/4 and lane/4 + 8 of both tiles, as bf16 pairs: for e2m1 in block lane%4 of the chunk.
  struct Scales {
    uint32_t pair[2];
  };

  Shared& s;

  __device__ E4m3Tile(Shared& shared, Matrix const (&m)[MATRICES], int row, int) : Rows(m, row), s(shared) {}

  __device__ void fill(int stage, int chunk) const {
    this->template fill_weights<Operand::PIECES>(s.weights[stage], chunk, Operand::place);
    for (int i = thread; i < TOKENS * X_PIECES; i += TILE_THREADS) {
      int const token = i / X_PIECES, piece = i % X_PIECES;
      bf16 const* const row = s.rows[token];
      void const* const from = row ? static_cast<void const*>(a8_codes(row, chunk) + piece) : this->matrix[0].codes;
      copy_piece(&s.x[stage][token * X_PIECES + place_of<2>(token, piece)], from, row);
    }
    static_assert(TOKENS <= TILE_THREADS, "a thread each");
    // Where there is no token, whatever stands there scales sums that nobody stores.
    bf16 const* const row = thread < TOKENS ? s.rows[thread] : nullptr;
    if (row) copy_bytes<sizeof(float)>(&s.x_scale[stage][thread], a8_scale(row, chunk), true);
  }

  __device__ Scales scales_of(int chunk) const {
    int const column = chunk * CHUNK + (SCALES == 1 ? 0 : lane % QUAD * FP4_BLOCK);
    Scales scale;
#pragma unroll
    for (int tile = 0; tile < 2; ++tile) {
      uint32_t pair[2];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        int const row = tile_row(half, tile);
        pair[half] = pair_of_scale(scale_byte_of<W>(this->matrix_of(row), this->row_in_matrix(row), column));
      }
      scale.pair[tile] = __byte_perm(pair[0], pair[1], 0x5410);
    }
    return scale;
  }

  __device__ void multiply(int stage, Scales const& scale) {
    uint32_t a[2][STEPS][4];
    float w_scale[SCALES][2][2];
#pragma unroll
    for (int tile = 0; tile < 2; ++tile) {
      Operand::load(a[tile], s.weights[stage], this->first_row_of(tile), lane);
#pragma unroll
      for (int i = 0; i < SCALES; ++i) {
        uint32_t const pair = SCALES == 1 ? scale.pair[tile] : __shfl_sync(0xffffffffu, scale.pair[tile], i, QUAD);
        w_scale[i][tile][0] = __uint_as_float(pair << 16);
        w_scale[i][tile][1] = __uint_as_float(pair & 0xffff0000u);
      }
    }
#pragma unroll
    for (int t = 0; t < NT; ++t) multiply_tokens(stage, t, a, w_scale);
  }

  __device__ void multiply_tokens(int stage, int t, uint32_t const (&a)[2][STEPS][4], float const (&w_scale)[SCALES][2][2]) {
    int const token = this->first_token(t) + lane / QUAD;
    uint32_t x[STEPS][2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      uint4 const v = s.x[stage][token * X_PIECES + place_of<2>(token, lane % QUAD * 2 + i)];
      x[2 * i][0] = v.x, x[2 * i][1] = v.y, x[2 * i + 1][0] = v.z, x[2 * i + 1][1] = v.w;
    }
    float total[2][4] = {};
#pragma unroll
    for (int scale = 0; scale < SCALES; ++scale) {
      float part[2][4] = {};
#pragma unroll
      for (int step = scale * Operand::STEPS_PER_SCALE; step < (scale + 1) * Operand::STEPS_PER_SCALE; ++step) {
#pragma unroll
        for (int tile = 0; tile < 2; ++tile) multiply_add_e4m3(part[tile], a[tile][step], x[step][0], x[step][1]);
      }
#pragma unroll
      for (int i = 0; i < 8; ++i) total[i / 4][i % 4] += part[i / 4][i % 4] * w_scale[scale][i / 4][i % 4 / 2];
    }
    float2 const x_scale = *reinterpret_cast<float2 const*>(&s.x_scale[stage][this->first_token(t) + lane % QUAD * 2]);
#pragma unroll
    for (int i = 0; i < 8; ++i) this->sum[i / 4][t][i % 4] += total[i / 4][i % 4] * (i % 2 ? x_scale.y : x_scale.x);
  }

  template <class TokenRow>
  __device__ void run(TokenRow token_row) {
    run_tile(*this, token_row);
  }
  template <class Store>
  __device__ void finish(Store store) const {
    this->put(Operand::UNSCALED * A8_UNSCALED, store);
  }
};

}  // namespace ds4
