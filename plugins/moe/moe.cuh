// moe: the routed experts of one layer, or a range of them
//
// Maths     h = bf16(silu(min(bf16(w1·a8(x)), limit))·clamp(bf16(w3·a8(x)), ±limit)·w);  y = bf16(w2·a8(h));
//           partial = sum of y over the token's experts, f32, by rising expert number; reference: ds4export/ops/moe.py
// Shapes    x [T, D] bf16, weights f32 and indices int64 [T, k], experts_weight [E', 3, bytes] (w1, w2, w3), experts_scale
//           [E', 3, bytes], expert_rows int64 [E'], num_new int64 [B] -> partial [T, D] f32; I the inner width
// Layout    an expert's row of the run is expert_rows[e]; e2m1 two a byte, low nibble first, a scale per 32 columns; or e4m3, 128x128
// Roofline  3·I·D/2 bytes of codes and as many /16 of scales per expert used, 6·I·D flop per token and expert; Flash, one token:
//           6 experts, 80 MB, 0.3 Gflop: 4 flop/B, memory side until some 100 tokens share an expert
// Tiling    pairs = (token, place) of tokens that are new and experts in the range
//
//             prepare   a8(x) by warps of blocks | one warp per expert: lists its pairs by rising pair, cuts them into tiles
//             up        tile x rows of I: w1 and w3 side by side, SwiGLU on the two sums of a lane   -> h [pair, I]
//             requantise   a8(h), as prepare in the form that the product reads                     -> h
//             down      tile x rows of D                                                             -> y [pair, D] bf16
//             combine   token x D: its pairs by rising expert                                        -> partial
//
//           few pairs: tiles of 8 pairs, stream_rows.cuh; many: tiles of 64 pairs, tile_product.cuh (e4m3 mma on sm_89 and sm_12x,
//           bf16 mma on the others). An expert's weights are read once per tile
// Order     no atomics: an expert's warp counts the pairs of the experts before it itself, so that lists need no other block
// Numerics  a8(x), e2m1·scale and e4m3·scale are exact in bf16; bf16 mma, sums of 64 or 128 columns added in float32. e4m3 mma:
//           sums of 32 columns (e4m3 weights: 128) times their scales, added in float32, 13 bits inside an mma on sm_89
// Limits    D and I multiples of 32 (e4m3: 16), k <= 32, T·k < 2^31; scales of 2^-92 to 2^33; an index outside of the range counts
//           as none; e4m3 scales in float32 are refused by their type; NaN, infinities and e4m3 weight codes that are NaN as
//           linear_fp8
// Measured  not run on a GPU; run on the host from its PTX
#pragma once
#include "common/a8.cuh"
#include "common/stream_rows.cuh"
#include "common/swiglu.cuh"
#include "common/tile_product.cuh"

namespace ds4::moe {

constexpr int MOST_PLACES = 32;  // k: a lane each in combine
constexpr int PREPARE_THREADS = 128, PREPARE_WARPS = PREPARE_THREADS / LANES;
constexpr int EXPERT_TILE = 64;  // pairs
constexpr unsigned ALL = 0xffffffffu;

// Pairs of one expert that are multiplied together; num 0: an empty entry of the table.
struct Tile {
  int expert, first, num;
};

// What all kernels of one call share. They take it field by field: then all of it is read before the first branch, where a
// struct by value would be addressed wherever it is used.
struct Call {
  int64_t const* indices;
  int64_t const* num_new;
  int64_t const* expert_rows;
  float const* weights;
  uint8_t const* experts_weight;
  uint8_t const* experts_scale;
  bf16* x;    // a8(x) [T, padded D]
  bf16* h;    // [pair, padded I]
  bf16* y;    // [pair, D]
  int* pairs;  // by expert, then by pair
  Tile* tiles;
  int64_t matrix_bytes, scale_bytes;
  float limit;
  int num_tokens, num_places, tokens_per_row, expert_begin, num_experts, hidden, inner, hidden_padded, inner_padded;
  int num_pairs, num_tiles, per_tile;
  bool tile_per_pair;  // entry i of the table belongs to listed pair i: only as many entries as pairs

  __device__ bool in_tiles() const { return per_tile == EXPERT_TILE; }

  // visit(field, field, ...) in the order of declaration
  template <class Visit>
  void fields(Visit visit) const {
    visit(indices, num_new, expert_rows, weights, experts_weight, experts_scale, x, h, y, pairs, tiles, matrix_bytes, scale_bytes, limit,
          num_tokens, num_places, tokens_per_row, expert_begin, num_experts, hidden, inner, hidden_padded, inner_padded, num_pairs,
          num_tiles, per_tile, tile_per_pair);
  }

  // The expert of a pair, counted from expert_begin; -1 if it is not in the range, the index out of bounds, or the token padding.
  __device__ int expert_of(int pair) const {
    int const token = pair / num_places;
    if (token % tokens_per_row >= num_new[token / tokens_per_row]) return -1;
    int64_t const expert = indices[pair] - expert_begin;
    return expert >= 0 && expert < num_experts ? static_cast<int>(expert) : -1;
  }
  template <class W>
  __device__ Matrix matrix(int expert, int which) const {
    int64_t const at = expert_rows[expert] * 3 + which;
    bool const down = which == 1;
    return {experts_weight + at * matrix_bytes, experts_scale + at * scale_bytes, down ? hidden : inner, down ? inner : hidden, 0};
  }
};

// Warps 0 .. num_experts-1 of the grid make lists, the others quantise x.
template <class W, class... Fields>
__global__ void __launch_bounds__(PREPARE_THREADS) prepare(bf16 const* x, Fields... field) {
  Call const c{field...};
  int const lane = static_cast<int>(threadIdx.x) % LANES;
  int64_t const warp = int64_t{blockIdx.x} * PREPARE_WARPS + threadIdx.x / LANES;
  if (warp >= c.num_experts) {
    quantise_rows<W::BITS == 4>(x, c.x, c.num_tokens, c.hidden, c.hidden_padded, warp - c.num_experts,
                                int64_t{gridDim.x} * PREPARE_WARPS - c.num_experts, c.in_tiles());
    return;
  }
  int const expert = static_cast<int>(warp);
  int before = 0, num = 0;  // pairs of earlier experts, and of this one
  for (int base = 0; base < c.num_pairs; base += LANES) {
    int const other = base + lane < c.num_pairs ? c.expert_of(base + lane) : -1;
    before += __popc(__ballot_sync(ALL, other >= 0 && other < expert));
    num += __popc(__ballot_sync(ALL, other == expert));
  }
  int at = before;
  for (int base = 0; num && base < c.num_pairs; base += LANES) {
    bool const own = base + lane < c.num_pairs && c.expert_of(base + lane) == expert;
    unsigned const who = __ballot_sync(ALL, own);
    if (own) c.pairs[at + __popc(who & ((1u << lane) - 1))] = base + lane;
    at += __popc(who);
  }
  // Entries of this expert: [begin, end) never meets another's, since ceil(n / m) summed is at most sum / m + experts.
  bool const last = expert == c.num_experts - 1;
  int const begin = c.tile_per_pair ? before : before / c.per_tile + expert;
  int const end = last ? c.num_tiles : c.tile_per_pair ? before + num : (before + num) / c.per_tile + expert + 1;
  for (int i = lane; i < end - begin; i += LANES) {
    int const offset = c.tile_per_pair ? i : i * c.per_tile;
    bool const is = offset < num && offset % c.per_tile == 0;
    c.tiles[begin + i] = {expert, before + offset, is ? min(num - offset, c.per_tile) : 0};
  }
}

// How `up` and `down` see a tile: token i of it is listed pair first + i.
struct Up {
  static constexpr int MATRICES = 2;
  template <class W>
  __device__ static void matrices(Call const& c, int expert, Matrix (&m)[2]) {
    m[0] = c.matrix<W>(expert, 0);
    m[1] = c.matrix<W>(expert, 2);
  }
  __device__ static int columns(Call const& c) { return c.hidden_padded; }
  __device__ static bf16 const* token(Call const& c, int pair) { return c.x + int64_t{pair / c.num_places} * c.hidden_padded; }
  __device__ static void put(Call const& c, int pair, int row, float const (&value)[2]) {
    c.h[int64_t{pair} * c.inner_padded + row] = bf16_from(swiglu(rounded(value[0]), rounded(value[1]), c.limit) * c.weights[pair]);
  }
};

struct Down {
  static constexpr int MATRICES = 1;
  template <class W>
  __device__ static void matrices(Call const& c, int expert, Matrix (&m)[1]) {
    m[0] = c.matrix<W>(expert, 1);
  }
  __device__ static int columns(Call const& c) { return c.inner_padded; }
  __device__ static bf16 const* token(Call const& c, int pair) { return c.h + int64_t{pair} * c.inner_padded; }
  __device__ static void put(Call const& c, int pair, int row, float const (&value)[1]) {
    c.y[int64_t{pair} * c.hidden + row] = bf16_from(value[0]);
  }
};

// Grid: rows / 16 x entries of the table.
template <class Half, class W, class... Fields>
__global__ void __launch_bounds__(STREAM_THREADS, 1) stream_experts(Fields... field) {
  Call const c{field...};
  constexpr int MATRICES = Half::MATRICES;
  __shared__ StreamSums<MATRICES, 1> sums;
  Tile const tile = c.tiles[blockIdx.y];
  if (tile.num == 0) return;
  Matrix matrix[MATRICES];
  Half::template matrices<W>(c, tile.expert, matrix);
  int const* const pairs = c.pairs + tile.first;
  stream_rows<W, MATRICES, 1, true, true>(
      matrix, static_cast<int>(blockIdx.x) * STREAM_ROWS, Half::columns(c), sums, [] {},
      [&](int i) -> bf16 const* { return i < tile.num ? Half::token(c, pairs[i]) : nullptr; },
      [&](int row, int i, float const(&value)[MATRICES]) {
        if (i < tile.num) Half::put(c, pairs[i], row, value);
      });
}

template <class Half, class W>
using ExpertTile = TileProduct<W, Half::MATRICES, EXPERT_TILE / 16, W::BITS == 4 ? 3 : 4, true>;

// Grid: rows / 128 (of two matrices: / 64) x entries of the table.
template <class Half, class W, class... Fields>
__global__ void __launch_bounds__(TILE_THREADS, 1) tile_experts(Fields... field) {
  Call const c{field...};
  constexpr int MATRICES = Half::MATRICES;
  using Product = typename ExpertTile<Half, W>::Here;
  extern __shared__ __align__(16) unsigned char raw[];
  Tile const tile = c.tiles[blockIdx.y];
  if (tile.num == 0) return;
  Matrix matrix[MATRICES];
  Half::template matrices<W>(c, tile.expert, matrix);
  int const* const pairs = c.pairs + tile.first;
  Product product(*reinterpret_cast<typename Product::Shared*>(raw), matrix, static_cast<int>(blockIdx.x) * Product::ROWS_PER_MATRIX,
                  Half::columns(c));
  product.run([&](int i) -> bf16 const* { return i < tile.num ? Half::token(c, pairs[i]) : nullptr; });
  product.finish([&](int row, int i, float const(&value)[MATRICES]) {
    if (i < tile.num) Half::put(c, pairs[i], row, value);
  });
}

// Rows of h in place, a warp per block of 128; pairs that no list holds have no h.
template <class W, class... Fields>
__global__ void __launch_bounds__(QUANTISE_THREADS) requantise(Fields... field) {
  Call const c{field...};
  constexpr int WARPS = QUANTISE_THREADS / LANES;
  int const blocks = c.inner_padded / A8_BLOCK;
  int64_t const num = int64_t{c.num_pairs} * blocks;
  for (int64_t i = int64_t{blockIdx.x} * WARPS + threadIdx.x / LANES; i < num; i += int64_t{gridDim.x} * WARPS) {
    int const pair = static_cast<int>(i / blocks);
    if (c.expert_of(pair) < 0) continue;
    bf16* const row = c.h + int64_t{pair} * c.inner_padded;
    quantise_block<W::BITS == 4>(row, static_cast<int>(i % blocks) * A8_BLOCK, c.inner, row, c.in_tiles());
  }
}

constexpr int COMBINE_THREADS = 128;

// Grid: tokens x columns / 128. Every warp orders the token's pairs by (expert, place), a lane each.
template <class... Fields>
__global__ void __launch_bounds__(COMBINE_THREADS) combine(float* partial, Fields... field) {
  Call const c{field...};
  int const lane = static_cast<int>(threadIdx.x) % LANES, token = static_cast<int>(blockIdx.x);
  int const expert = lane < c.num_places ? c.expert_of(token * c.num_places + lane) : -1;
  int rank = 0;
  for (int other = 0; other < c.num_places; ++other) {
    int const its = __shfl_sync(ALL, expert, other);
    rank += its >= 0 && (its < expert || (its == expert && other < lane));
  }
  int const num = __popc(__ballot_sync(ALL, expert >= 0)), column = static_cast<int>(blockIdx.y * COMBINE_THREADS + threadIdx.x);
  float sum = 0;
  for (int i = 0; i < num; ++i) {
    int const place = __popc(__ballot_sync(ALL, expert >= 0 && rank == i) - 1);  // of the one bit that is set
    if (column < c.hidden) sum += float_from(c.y[(int64_t{token} * c.num_places + place) * c.hidden + column]);
  }
  if (column < c.hidden) partial[int64_t{token} * c.hidden + column] = sum;
}

}  // namespace ds4::moe
