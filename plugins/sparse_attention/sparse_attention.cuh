// sparse_attention: queries, window rows and chosen entries -> attention output; attention_window, _csa and _hca share it
//
// Maths     l_i = (q_h·kv_i)·d^-0.5;  M = max l_i;  o_h = sum exp(l_i - M)·kv_i / (sum exp(l_i - M) + exp(sink_h - M)),
//           then the inverse rope at the query's position; reference: ds4export/ops/_attention.py
// Shapes    q [B, T, H, d], kv [B, T, d], ring [S, R + 1, d], entries [S, C + 1, d], chosen int64 [B, T, k] -> o [B, T, H·d]
//           The list of query t: column c < window is position max(t - window + 1, 0) + c, from the ring where that lies
//           before the chunk, else from kv; then entries, as chosen (-1: none) or all that t may see
// Layout    rows contiguous, 16-byte aligned, bf16; 64-bit offsets. ring and entries may both be packed instead, rows of 584 bytes
//           at d 512, 8-byte aligned (common/packed_rows.cuh); kv, the chunk's own rows, is bf16 either way
// Roofline  a list of L keys is read once for the heads of a tile, from L2 by the other tiles: 2·d·L bytes, 4·H·d·L flop.
//           d 512, decode: Flash CSA (H 64, L 640) 0.66 MB, 84 Mflop, 128 flop/B: memory side from A100 (156) on, narrowly;
//           Pro CSA (H 128, L 1152) 1.2 MB, 302 Mflop, 256 flop/B: compute side on A100, memory side on H100 (295). Packed:
//           584·L bytes, Flash 0.37 MB, 225 flop/B, Pro 0.67 MB, 449 flop/B: compute side on A100, Pro's on H100 too
// Tiling    block = one query x HEADS heads x one split of the list, decode and prefill alike; 8 warps; per 64 keys of it:
//
//               chunks of 16 keys --cp.async--> ring of CHUNKS    (the next CHUNKS - 4 land meanwhile; 16 heads x 512: none)
//               packed: a warp reads a row where it landed and writes it there as bf16, 8 rows a warp                barrier
//               S [HEADS, 64] = Q·K^T   warp = 16 heads x HEADS/2 keys              f32, shared         barrier
//               softmax               warp = HEADS/8 rows, lane = 2 keys            P bf16, shared      barrier
//               O [HEADS, d] += P·V     warp = all heads x d/8 dims: each value is loaded by one warp   barrier
//
//           A tile is one query because the blocks of 64, and with them the rounding of P, begin where its list begins;
//           64 heads on one key row fill the tensor cores without a second query. Splits are merged by a second kernel
// Order     append() (append.cuh) writes the chunk's rows into the ring and is launched after every reader: the same buffer
//           may be ring and ring_out
// Numerics  f32 logits, sums and accumulators; P = bf16(exp(l - running max)) in blocks of 64, as the released code. With
//           one split that is its rounding: on the host within 2e-4 of the reference (relative, over o), equal where a list
//           is one block. With more, each split has a running maximum of its own: P is rounded on another scale, at most
//           2^-9 relative either way; on the host up to 2.4e-3 (d 512, random values), the op's bound is 3e-3. Shapes and
//           the number of multiprocessors decide on splits
//           Packed rows give the same bits as the bf16 rows that they stand for: after widening nothing differs
// Limits    d 64, 128, 192, 512, packed: not 64, roped dims a multiple of 8; any H, T, B, list length;
//           positions below 2^31; an index past the entries counts as none
// Measured  not run on a GPU; every case run on the host from its PTX
#pragma once
#include <cuda_runtime.h>

#include "common/packed_rows.cuh"
#include "common/tensor_core.cuh"
#include "common/turn.cuh"
#include "common/vector.cuh"

namespace ds4::sparse_attention {

constexpr int THREADS = 256, WARPS = THREADS / LANES;
constexpr int BLOCK = 64;  // keys between two updates of the running maximum
constexpr int CHUNK = 16, CHUNKS_PER_BLOCK = BLOCK / CHUNK;
constexpr int TEAM = THREADS / CHUNK;  // threads that bring a packed row
constexpr int MMA_ROWS = 16, MMA_COLUMNS = 8, MMA_DEPTH = 16;

template <int width, int heads, int chunks, bool packed = false>
struct Config {
  static constexpr int WIDTH = width, HEADS = heads, CHUNKS = chunks;
  static constexpr bool PACKED = packed;  // the rows of ring and entries
  static constexpr int PIECES = WIDTH / PIECE;
  static constexpr int GROUPS = HEADS / MMA_ROWS;                                // of 16 heads
  static constexpr int KEY_TILES = BLOCK / MMA_COLUMNS / (WARPS / GROUPS);       // a warp's share of S: 16 heads x 8·KEY_TILES
  static constexpr int CHAINS = KEY_TILES == 1 ? 2 : 1;                          // independent sums that keep an mma busy
  static constexpr int DIM_TILES = WIDTH / WARPS / MMA_COLUMNS;                  // a warp's share of O: HEADS x 8·DIM_TILES
  static constexpr int ROWS_PER_WARP = HEADS / WARPS;
  static constexpr int LOGIT_STRIDE = BLOCK + 8;  // floats; the float2 stores of an accumulator meet no bank twice
  static_assert(WIDTH % 64 == 0 && HEADS % MMA_ROWS == 0 && GROUPS <= WARPS && CHUNKS >= CHUNKS_PER_BLOCK);
  static_assert(CHUNKS <= 2 * CHUNKS_PER_BLOCK, "the table of rows holds two list blocks");
};

// Where the row of a key is, or that there is none. Rows begin at multiples of 8 bytes: bit 0 says that this one is packed.
class Row {
 public:
  Row() = default;
  __device__ Row(void const* at, bool packed) : bits_(reinterpret_cast<uintptr_t>(at) | packed) {}
  __device__ bool exists() const { return bits_ != 0; }
  __device__ bool is_packed() const { return bits_ & 1; }
  template <class T>
  __device__ T const* as() const {
    return reinterpret_cast<T const*>(bits_ & ~uintptr_t{1});
  }

 private:
  uintptr_t bits_;
};

// The list of one query: where the row of each column is.
template <class C>
struct List {
  bf16 const* kv;                   // of this batch row
  uint8_t const *ring, *entries;    // of its slot
  int64_t const* chosen;            // null: entries in their order
  int start, position, first;       // of the chunk, of the query, of column 0
  int window, ring_length, num_entries, num_more;
  int row_bytes, num_codes;         // of ring and entries

  __device__ int num_blocks() const { return (window + num_more + BLOCK - 1) / BLOCK; }
  __device__ Row kept(uint8_t const* rows, int64_t index) const { return {rows + index * row_bytes, C::PACKED}; }
  __device__ Row row(int column) const {
    if (column < window) {
      int const at = first + column;
      if (at > position) return {nullptr, false};
      return at < start ? kept(ring, at % ring_length) : Row{kv + int64_t{at - start} * C::WIDTH, false};
    }
    column -= window;
    if (column >= num_more) return {nullptr, false};
    int64_t const index = chosen ? chosen[column] : column;
    return index < 0 || index >= num_entries ? Row{nullptr, false} : kept(entries, index);
  }
};

template <class C>
struct Shared {
  alignas(16) bf16 q[C::HEADS * C::WIDTH];
  alignas(16) bf16 keys[C::CHUNKS * CHUNK * C::WIDTH];
  alignas(16) float logits[C::HEADS * C::LOGIT_STRIDE];  // after the last list block: cos and sin of the query's position
  alignas(16) bf16 p[C::HEADS * BLOCK];
  Row rows[2][BLOCK];                                    // where a list block's keys are
  float fade[C::HEADS], top[C::HEADS], total[C::HEADS];
  List<C> list;  // here, not in registers: O takes up to 128 of a thread's 255
};

// One instruction and a product; 2^-20 relative for the arguments that matter, where P keeps 2^-9.
__device__ inline float exponential(float x) { return exp2f(x * 1.4426950408889634f); }

// The state of the heads of a tile after a split: maximum and sum of a softmax whose values are `partial`.
struct Stat {
  float top, total;
};

// Two neighbouring dims of o, f32 over the denominator -> bf16 -> inverse rope -> bf16; `turn` is of this pair.
__device__ inline __nv_bfloat162 finished(float a, float b, float denominator, bool roped, Turn turn) {
  a = float_from(bf16_from(a / denominator));
  b = float_from(bf16_from(b / denominator));
  if (roped) {
    float const x = a * turn.cos + b * turn.sin;
    b = b * turn.cos - a * turn.sin;
    a = x;
  }
  return __floats2bfloat162_rn(a, b);
}

// One query, HEADS heads, one split of its list.
template <class C>
struct Tile {
  Shared<C>& s;
  bf16 const* some_address;  // any that can be read
  int const thread = static_cast<int>(threadIdx.x), lane = thread % LANES, warp = thread / LANES;
  int const row = lane / 4, column = lane % 4 * 2;  // in an accumulator
  float out[C::GROUPS][C::DIM_TILES][4] = {};
  float top = -INFINITY, total = 0;  // lane i keeps those of row i of its warp

  __device__ Tile(Shared<C>& shared, bf16 const* q) : s(shared), some_address(q) {}

  __device__ void load_queries(bf16 const* q, int num_heads) const {
#pragma unroll 1
    for (int i = thread; i < C::HEADS * C::PIECES; i += THREADS) {
      int const head = i / C::PIECES, piece = i % C::PIECES;
      bool const exists = head < num_heads;
      copy_piece(s.q + head * C::WIDTH + swizzled(head, piece) * PIECE,
                 exists ? q + int64_t{head} * C::WIDTH + piece * PIECE : some_address, exists);
    }
  }

  __device__ bf16* key_row(int block, int key) const {
    int const slot = (block * CHUNKS_PER_BLOCK + key / CHUNK) % C::CHUNKS;
    return s.keys + (slot * CHUNK + key % CHUNK) * C::WIDTH;
  }

  // Chunks are numbered from the first of this split; every call commits one group, so that waits can count.
  __device__ void load_chunk(int number, int num_blocks) const {
    int const block = number / CHUNKS_PER_BLOCK;
    if (block < num_blocks) {
      int const first_key = number % CHUNKS_PER_BLOCK * CHUNK;
      if constexpr (C::PACKED) {
        load_either(block, first_key + thread / TEAM);
      } else {
#pragma unroll 2
        for (int i = thread; i < CHUNK * C::PIECES; i += THREADS) load_piece(block, first_key + i / C::PIECES, i % C::PIECES);
      }
    }
    commit_copies();
  }
  __device__ void load_piece(int block, int key, int piece) const {
    Row const from = s.rows[block % 2][key];
    copy_piece(key_row(block, key) + swizzled(key, piece) * PIECE, from.exists() ? from.template as<bf16>() + piece * PIECE : some_address,
               from.exists());
  }
  // A team of threads brings a row: a packed one as it is, to where widen() makes bf16 of it.
  __device__ void load_either(int block, int key) const {
    Row const from = s.rows[block % 2][key];
    int const member = thread % TEAM;
    if (from.is_packed()) {
      auto* const to = reinterpret_cast<uint8_t*>(key_row(block, key));
#pragma unroll 2
      for (int at = member * 8; at < s.list.row_bytes; at += TEAM * 8) copy_bytes<8>(to + at, from.template as<uint8_t>() + at, true);
    } else {
#pragma unroll 2
      for (int piece = member; piece < C::PIECES; piece += TEAM) load_piece(block, key, piece);
    }
  }

  // The packed rows of a list block become bf16 where they lie: the lanes of a warp have read a row before they write it.
  __device__ void widen(int block) const {
    constexpr int KEYS = BLOCK / WARPS, PER_LANE = (C::PIECES + LANES - 1) / LANES;
    PackedKv const shape{C::WIDTH, s.list.num_codes};
#pragma unroll 1
    for (int key = warp * KEYS; key < (warp + 1) * KEYS; ++key) {
      if (!s.rows[block % 2][key].is_packed()) continue;
      bf16* const row = key_row(block, key);
      uint4 piece[PER_LANE];
#pragma unroll
      for (int i = 0; i < PER_LANE; ++i) {
        if (int const at = lane + i * LANES; at < C::PIECES) piece[i] = shape.piece(reinterpret_cast<uint8_t const*>(row), at * PIECE);
      }
      __syncwarp();
#pragma unroll
      for (int i = 0; i < PER_LANE; ++i) {
        if (int const at = lane + i * LANES; at < C::PIECES) *reinterpret_cast<uint4*>(row + swizzled(key, at) * PIECE) = piece[i];
      }
    }
  }

  // logits = einsum("thd,tld->thl", q, keys) * d**-0.5
  __device__ void multiply_keys(int block, float scale) const {
    int const head = warp % C::GROUPS * MMA_ROWS, key = warp / C::GROUPS * C::KEY_TILES * MMA_COLUMNS;
    float sum[C::CHAINS][C::KEY_TILES][4] = {};
    int const q_row = head + lane % 16;
#pragma unroll 2
    for (int k = 0; k < C::WIDTH; k += 2 * MMA_DEPTH) {
      uint32_t a[2][4];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        load_matrices(a[i], s.q + q_row * C::WIDTH + swizzled(q_row, (k + i * MMA_DEPTH) / PIECE + lane / 16) * PIECE);
      }
#pragma unroll
      for (int tile = 0; tile < C::KEY_TILES; ++tile) {
        uint32_t b[4];
        int const key_at = key + tile * MMA_COLUMNS + lane % 8;
        load_matrices(b, key_row(block, key_at) + swizzled(key_at, k / PIECE + lane / 8) * PIECE);
        multiply_add(sum[0][tile], a[0], b[0], b[1]);
        multiply_add(sum[C::CHAINS - 1][tile], a[1], b[2], b[3]);
      }
    }
    // logits = where(valid, logits, -inf), here and not in softmax(): a lane's own condition must not fork its shuffles
#pragma unroll
    for (int tile = 0; tile < C::KEY_TILES; ++tile) {
      Row const* const rows = s.rows[block % 2] + key + tile * MMA_COLUMNS + column;
      bool const exists[2] = {rows[0].exists(), rows[1].exists()};
#pragma unroll
      for (int i = 0; i < 4; i += 2) {
        float x = sum[0][tile][i], y = sum[0][tile][i + 1];
        if constexpr (C::CHAINS == 2) x += sum[1][tile][i], y += sum[1][tile][i + 1];
        float* const to = s.logits + (head + row + i * 4) * C::LOGIT_STRIDE + key + tile * MMA_COLUMNS + column;
        *reinterpret_cast<float2*>(to) = make_float2(exists[0] ? x * scale : -INFINITY, exists[1] ? y * scale : -INFINITY);
      }
    }
  }

  // new_top = maximum(top, logits.amax());  fade = exp(top - new_top);  p = exp(logits - new_top)
  __device__ void softmax() {
    float fade = 0;  // as top and total; selections instead of branches on the lane keep the shuffles in one piece
#pragma unroll
    for (int i = 0; i < C::ROWS_PER_WARP; ++i) {
      int const head = warp * C::ROWS_PER_WARP + i;
      float const first = s.logits[head * C::LOGIT_STRIDE + lane], second = s.logits[head * C::LOGIT_STRIDE + lane + LANES];
      float new_top = fmaxf(first, second);
      for (int step = LANES / 2; step; step /= 2) new_top = fmaxf(new_top, __shfl_xor_sync(0xffffffffu, new_top, step));
      float const old_top = __shfl_sync(0xffffffffu, top, i);
      new_top = fmaxf(new_top, old_top);
      // -inf: this split has seen no key yet, and stays empty
      float const base = new_top == -INFINITY ? 0.0f : new_top, row_fade = exponential(old_top - base);
      float const p = exponential(first - base), p_second = exponential(second - base), sum = warp_sum(p + p_second);
      top = lane == i ? new_top : top;
      total = lane == i ? total * row_fade + sum : total;
      fade = lane == i ? row_fade : fade;
      store_p(head, lane, p);
      store_p(head, lane + LANES, p_second);
    }
    if (lane < C::ROWS_PER_WARP) s.fade[warp * C::ROWS_PER_WARP + lane] = fade;
  }
  __device__ void store_p(int head, int key, float p) const {
    s.p[head * BLOCK + swizzled(head, key / PIECE) * PIECE + key % PIECE] = bf16_from(p);
  }

  // acc = acc * fade + einsum("thl,tld->thd", rounded(p), keys)
  __device__ void multiply_values(int block) {
#pragma unroll
    for (int g = 0; g < C::GROUPS; ++g) {
      float const fade[2] = {s.fade[g * MMA_ROWS + row], s.fade[g * MMA_ROWS + row + 8]};
#pragma unroll
      for (int tile = 0; tile < C::DIM_TILES; ++tile) {
#pragma unroll
        for (int i = 0; i < 4; ++i) out[g][tile][i] *= fade[i / 2];
      }
    }
#pragma unroll 1  // registers: of 64 heads, O and P take 160
    for (int key = 0; key < BLOCK; key += LANES) {  // a lane brings the address of one key
      uint32_t a[C::GROUPS][2][4];
#pragma unroll
      for (int g = 0; g < C::GROUPS; ++g) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          int const head = g * MMA_ROWS + lane % 16;
          load_matrices(a[g][i], s.p + head * BLOCK + swizzled(head, (key + i * MMA_DEPTH) / PIECE + lane / 16) * PIECE);
        }
      }
#pragma unroll
      for (int tile = 0; tile < C::DIM_TILES; ++tile) {
        uint32_t v[4];
        load_matrices_transposed(v, key_row(block, key + lane) + swizzled(lane, warp * C::DIM_TILES + tile) * PIECE);
#pragma unroll
        for (int g = 0; g < C::GROUPS; ++g) {
          multiply_add(out[g][tile], a[g][0], v[0], v[1]);
          multiply_add(out[g][tile], a[g][1], v[2], v[3]);
        }
      }
    }
  }

  __device__ void attend(List<C> const& list, int first_block, int num_blocks) {
    if (thread == 0) s.list = list;
    __syncthreads();
    auto const scale = static_cast<float>(1 / sqrt(static_cast<double>(C::WIDTH)));
    for (int i = thread; i < 2 * BLOCK; i += THREADS) s.rows[i / BLOCK][i % BLOCK] = s.list.row(first_block * BLOCK + i);
    __syncthreads();  // the table of the first two list blocks is written
#pragma unroll 1
    for (int i = 0; i < C::CHUNKS; ++i) load_chunk(i, num_blocks);
#pragma unroll 1
    for (int block = 0; block < num_blocks; ++block) {
      // this thread's part of the table, two blocks ahead: its load is in flight while the products run
      Row const next = thread < BLOCK ? s.list.row((first_block + block + 2) * BLOCK + thread) : Row{nullptr, false};
      wait_copies<C::CHUNKS - CHUNKS_PER_BLOCK>();
      __syncthreads();  // the queries and this block's keys are here
      if constexpr (C::PACKED) {
        widen(block);
        __syncthreads();  // all keys are bf16
      }
      multiply_keys(block, scale);
      __syncthreads();  // S is written; this block's table is read
      softmax();
      __syncthreads();  // P is written
      multiply_values(block);
      if (thread < BLOCK) s.rows[block % 2][thread] = next;
      __syncthreads();  // this block's chunks are free; the next table is written
#pragma unroll 1
      for (int i = 0; i < CHUNKS_PER_BLOCK; ++i) load_chunk(block * CHUNKS_PER_BLOCK + C::CHUNKS + i, num_blocks);
    }
    if (lane < C::ROWS_PER_WARP) {
      s.top[warp * C::ROWS_PER_WARP + lane] = top;
      s.total[warp * C::ROWS_PER_WARP + lane] = total;
    }
  }

  // visit(head, dim, value, next value) for all pairs of neighbouring dims that this lane holds
  template <class Visit>
  __device__ void for_each_pair(int num_heads, Visit visit) const {
#pragma unroll
    for (int g = 0; g < C::GROUPS; ++g) {
#pragma unroll
      for (int i = 0; i < 4; i += 2) {
        int const head = g * MMA_ROWS + row + i * 4;
        if (head >= num_heads) continue;
#pragma unroll
        for (int tile = 0; tile < C::DIM_TILES; ++tile) {
          visit(head, (warp * C::DIM_TILES + tile) * MMA_COLUMNS + column, out[g][tile][i], out[g][tile][i + 1]);
        }
      }
    }
  }
};

// Grid: (query, tile of heads) x split. `values` and `stats` are of all splits, [query, split, H, ...]; null: one split.
template <class C>
__global__ void __launch_bounds__(THREADS, 1)
    attend(bf16 const* q, bf16 const* kv, uint8_t const* ring, uint8_t const* entries, int64_t const* chosen, float const* sink,
           float const* freqs, int64_t const* slots, int64_t const* positions, int64_t const* num_new, bf16* o, float* values,
           Stat* stats, int num_tokens, int num_heads, int num_freqs, int window, int num_ring_rows, int num_entry_rows,
           int num_chosen, int ratio) {
  extern __shared__ __align__(16) unsigned char raw[];
  auto& s = *reinterpret_cast<Shared<C>*>(raw);
  int const num_tiles = (num_heads + C::HEADS - 1) / C::HEADS;
  int const first_head = static_cast<int>(blockIdx.x % num_tiles) * C::HEADS;
  int64_t const query = blockIdx.x / num_tiles, b = query / num_tokens;
  int const t = static_cast<int>(query % num_tokens), heads_here = min(num_heads - first_head, C::HEADS);
  int const start = static_cast<int>(positions[b]), position = start + t;
  bf16* const out = o + (query * num_heads + first_head) * C::WIDTH;
  if (t >= num_new[b]) {  // a padding query yields zeros; of several splits, merge() writes them
    if (values) return;
    for (int i = static_cast<int>(threadIdx.x); i < heads_here * C::PIECES; i += THREADS) reinterpret_cast<uint4*>(out)[i] = uint4{};
    return;
  }
  int64_t const slot = slots[b];
  int const num_more = !entries ? 0 : chosen ? num_chosen : min((position + 1) / ratio, num_entry_rows - 1);
  int const row_bytes = C::PACKED ? packed_kv_bytes(C::WIDTH, 2 * num_freqs) : static_cast<int>(C::WIDTH * sizeof(bf16));
  List<C> const list{kv + b * num_tokens * C::WIDTH,
                     ring + slot * num_ring_rows * row_bytes,
                     entries + (entries ? slot * num_entry_rows * row_bytes : 0),
                     chosen ? chosen + query * num_chosen : nullptr,
                     start, position, max(position - window + 1, 0),
                     window, num_ring_rows - 1, num_entry_rows - 1, num_more, row_bytes, C::WIDTH - 2 * num_freqs};
  int64_t const blocks = list.num_blocks(), split = blockIdx.y, num_splits = gridDim.y;
  int const first_block = static_cast<int>(blocks * split / num_splits);
  int const num_blocks = static_cast<int>(blocks * (split + 1) / num_splits) - first_block;

  int64_t const at = (query * num_splits + split) * num_heads + first_head;  // among the splits' results
  if (num_blocks == 0) {  // only of several splits; merge() skips its values
    for (int i = static_cast<int>(threadIdx.x); i < heads_here; i += THREADS) stats[at + i] = {-INFINITY, 0};
    return;
  }
  Tile<C> tile(s, q);
  bf16 const* const queries = q + (query * num_heads + first_head) * C::WIDTH;
  tile.load_queries(queries, heads_here);
  tile.attend(list, first_block, num_blocks);
  if (values) {
    __syncthreads();  // top and total are written
    for (int i = static_cast<int>(threadIdx.x); i < heads_here; i += THREADS) stats[at + i] = {s.top[i], s.total[i]};
    tile.for_each_pair(heads_here, [&](int head, int dim, float x, float y) {
      *reinterpret_cast<float2*>(values + (at + head) * C::WIDTH + dim) = make_float2(x, y);
    });
    return;
  }
  auto* const turns = reinterpret_cast<Turn*>(s.logits);
  for (int i = static_cast<int>(threadIdx.x); i < num_freqs; i += THREADS) turns[i] = turn_from(position, freqs[i]);
  __syncthreads();  // top, total and turns are written
  int const first_roped = C::WIDTH - 2 * num_freqs;
  tile.for_each_pair(heads_here, [&](int head, int dim, float x, float y) {
    bool const roped = dim >= first_roped;
    float const denominator = s.total[head] + exponential(sink[first_head + head] - s.top[head]);
    *reinterpret_cast<__nv_bfloat162*>(out + head * C::WIDTH + dim) =
        finished(x, y, denominator, roped, roped ? turns[(dim - first_roped) / 2] : Turn{1, 0});
  });
}

constexpr int MERGE_THREADS = 128;
// More than the multiprocessors of any GPU meant. A constant, so that an engine built on one machine asks for enough
// workspace on another.
constexpr int MOST_SPLIT_BLOCKS = 192;

// Grid: query x head. The splits' sums on the scale of the largest maximum, in the order of the splits.
template <int width>
__global__ void __launch_bounds__(MERGE_THREADS)
    merge(float const* values, Stat const* stats, float const* sink, float const* freqs, int64_t const* positions,
          int64_t const* num_new, bf16* o, int num_tokens, int num_heads, int num_freqs, int num_splits) {
  __shared__ float weights[MOST_SPLIT_BLOCKS];
  int const thread = static_cast<int>(threadIdx.x), head = static_cast<int>(blockIdx.x % num_heads);
  int64_t const query = blockIdx.x / num_heads, b = query / num_tokens, first = query * num_splits * num_heads + head;
  int const t = static_cast<int>(query % num_tokens), position = static_cast<int>(positions[b]) + t;
  auto* const out = reinterpret_cast<__nv_bfloat162*>(o + (query * num_heads + head) * width);
  if (t >= num_new[b]) {
    for (int pair = thread; pair < width / 2; pair += MERGE_THREADS) out[pair] = __floats2bfloat162_rn(0, 0);
    return;
  }
  stats += first;
  values += first * width;
  float top = -INFINITY, total = 0;
#pragma unroll 1
  for (int i = 0; i < num_splits; ++i) top = fmaxf(top, stats[int64_t{i} * num_heads].top);
  for (int i = thread; i < num_splits; i += MERGE_THREADS) weights[i] = exponential(stats[int64_t{i} * num_heads].top - top);
  __syncthreads();
#pragma unroll 1
  for (int i = 0; i < num_splits; ++i) total += stats[int64_t{i} * num_heads].total * weights[i];
  total += exponential(sink[head] - top);
  int const first_roped = width / 2 - num_freqs;
#pragma unroll 1
  for (int pair = thread; pair < width / 2; pair += MERGE_THREADS) {
    float x = 0, y = 0;
#pragma unroll 1
    for (int i = 0; i < num_splits; ++i) {
      if (weights[i] == 0) continue;  // an empty split has no values
      float2 const value = *reinterpret_cast<float2 const*>(values + int64_t{i} * num_heads * width + 2 * pair);
      x += value.x * weights[i];
      y += value.y * weights[i];
    }
    bool const roped = pair >= first_roped;
    out[pair] = finished(x, y, total, roped, roped ? turn_from(position, freqs[pair - first_roped]) : Turn{1, 0});
  }
}

}  // namespace ds4::sparse_attention
