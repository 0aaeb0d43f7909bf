// indexer_topk: index queries, head weights and index keys -> the k entries that each query reads
//
// Maths     w_h = bf16(weights_h·(H·d)^-0.5);  score_j = bf16(sum_h bf16(w_h·relu(bf16(q_h·key_j)))) over visible j,
//           (j + 1)·ratio <= position + 1;  chosen = the k highest, equal scores: lower j first, by falling score
//           reference: ds4export/ops/indexer_topk.py
// Shapes    q [B, T, H, d], weights [B, T, H], keys [S, C + 1, d] bf16 -> chosen int64 [B, T, k], -1 beyond the visible
// Layout    rows contiguous, 16-byte aligned; 64-bit offsets. keys may be packed instead: [S, C + 1, 68] bytes at d 128, 4-byte
//           aligned (common/packed_rows.cuh)
// Roofline  decode: 2·d bytes and 2·H·d flop a key: H 64, d 128: 256 B and 16.4 kflop, 64 flop/B: memory side; 262,144
//           keys (1M tokens) are 67 MB; packed 68 B a key, 241 flop/B, 18 MB: compute side on A100 (156).
//           Prefill: keys come from the L2 cache once per query, tensor cores bound it
// Tiling    score(): block = one query x one split of its keys; a warp = 16 keys x all heads, so sums over heads stay in
//           registers and the four lanes that share a key:
//
//               tile of 128 keys --cp.async--> 2 stages     packed: a warp makes bf16 of its 16 keys where they landed
//                                                           mma: 16 keys x 8 heads x 16 dims, H/8·d/16 of them a warp
//               128 scores -> list [k best so far | scores of up to 896 new keys]; when it is full: keep the k best
//
//           keep: two histograms of 256 bins over the bits of a score (radix select) give the lowest kept score and how many
//           equal to it are kept; a stable compaction keeps the order of the keys, so that the lowest indices win ties
//           merge(): block = one query x up to 16 splits' lists; again keeps k; in rounds until one list is left. Whoever
//           holds the last list sorts it (bitonic). Scores of all keys lie nowhere: a split hands on k candidates
// Numerics  f32 products and sums; the bf16 roundings above; the sum over heads runs in another order than the reference,
//           which can move a score to the next bf16 value. -0 counts as 0; a NaN score is the highest, as torch sorts
// Limits    (d, most H) = (32, 16), (128, 16), (128, 64), packed: d 128; 1 <= k <= 1024; positions below 2^31
// Measured  not run on a GPU; every case run on the host from its PTX
#pragma once
#include "common/packed_rows.cuh"
#include "common/tensor_core.cuh"
#include "common/vector.cuh"

namespace ds4::indexer_topk {

constexpr int THREADS = 256, WARPS = THREADS / LANES;
constexpr int MMA_ROWS = 16, MMA_COLUMNS = 8, MMA_DEPTH = 16;
constexpr int TILE = WARPS * MMA_ROWS;  // keys
constexpr int STAGES = 2;
constexpr int MOST_CHOSEN = 1024, MOST_NEW = 896, LIST = MOST_CHOSEN + MOST_NEW;
constexpr int BINS = 256;
static_assert(BINS == THREADS && MOST_NEW % TILE == 0);

// A score whose order is that of unsigned integers.
using Rank = uint16_t;

__device__ inline Rank rank_from(float score) {
  if (score != score) return 0xffff;
  uint32_t const bits = __bfloat16_as_ushort(bf16_from(score == 0 ? 0.0f : score));
  return static_cast<Rank>(bits & 0x8000 ? ~bits : bits | 0x8000);
}

// A candidate of a split in global memory.
struct Candidate {
  uint32_t rank;
  int32_t index;
};

// Candidates by rising index, and room for those that are kept.
struct List {
  Rank ranks[LIST], kept_ranks[MOST_CHOSEN];
  int32_t indices[LIST], kept_indices[MOST_CHOSEN];
  uint32_t bins[BINS];
  uint32_t above[WARPS], equal[WARPS];  // each warp's share of what is kept
  uint32_t bin, wanted;                 // of the digit that is being chosen
};

// The bin in which the `wanted` highest end, and how many of it they take. All threads; `bins` holds the counts.
__device__ inline void choose_bin(List& list, uint32_t wanted) {
  int const thread = static_cast<int>(threadIdx.x), lane = thread % LANES, warp = thread / LANES;
  uint32_t const own = list.bins[BINS - 1 - thread];  // from the highest bin on
  uint32_t up_to = own;
  for (int step = 1; step < LANES; step *= 2) {
    uint32_t const before = __shfl_up_sync(0xffffffffu, up_to, step);
    up_to += lane >= step ? before : 0;
  }
  if (lane == LANES - 1) list.above[warp] = up_to;
  __syncthreads();
  for (int i = 0; i < warp; ++i) up_to += list.above[i];
  if (up_to >= wanted && up_to - own < wanted) {  // true of one thread
    list.bin = static_cast<uint32_t>(BINS - 1 - thread);
    list.wanted = wanted - (up_to - own);
  }
  __syncthreads();
}

// Of the first `size` > k candidates the k highest stay, in the same order. All threads.
__device__ inline void keep_highest(List& list, int size, int k) {
  int const thread = static_cast<int>(threadIdx.x), lane = thread % LANES, warp = thread / LANES;
  Rank const* const ranks = list.ranks;
  uint32_t wanted = static_cast<uint32_t>(k), prefix = 0;
#pragma unroll 1
  for (int shift = 8; shift >= 0; shift -= 8) {
    list.bins[thread] = 0;
    __syncthreads();
    for (int i = thread; i < size; i += THREADS) {
      uint32_t const rank = ranks[i];
      if (shift == 8 || rank >> 8 == prefix) atomicAdd(&list.bins[rank >> shift & (BINS - 1)], 1u);
    }
    __syncthreads();
    choose_bin(list, wanted);
    prefix = prefix << 8 | list.bin;
    wanted = list.wanted;
    __syncthreads();
  }
  // `prefix` is the lowest rank kept, `wanted` how many candidates of that rank are: the first ones
  int const share = (size + THREADS - 1) / THREADS * LANES, first = warp * share;  // a warp's run of the list
  uint32_t above = 0, equal = 0;
  for (int i = 0; i < share; i += LANES) {
    int const at = first + i + lane;
    uint32_t const rank = at < size ? ranks[at] : 0;
    above += __popc(__ballot_sync(0xffffffffu, at < size && rank > prefix));
    equal += __popc(__ballot_sync(0xffffffffu, at < size && rank == prefix));
  }
  if (lane == 0) list.above[warp] = above, list.equal[warp] = equal;
  __syncthreads();
  above = equal = 0;
  for (int i = 0; i < warp; ++i) above += list.above[i], equal += list.equal[i];
  uint32_t const earlier_lanes = (1u << lane) - 1;
  for (int i = 0; i < share; i += LANES) {
    int const at = first + i + lane;
    uint32_t const rank = at < size ? ranks[at] : 0;
    bool const is_above = at < size && rank > prefix, is_equal = at < size && rank == prefix;
    uint32_t const all_above = __ballot_sync(0xffffffffu, is_above), all_equal = __ballot_sync(0xffffffffu, is_equal);
    uint32_t const own_equal = equal + __popc(all_equal & earlier_lanes);
    uint32_t const to = above + __popc(all_above & earlier_lanes) + min(own_equal, wanted);
    if (is_above || (is_equal && own_equal < wanted)) {
      list.kept_ranks[to] = ranks[at];
      list.kept_indices[to] = list.indices[at];
    }
    above += __popc(all_above);
    equal += __popc(all_equal);
  }
  __syncthreads();
  for (int i = thread; i < k; i += THREADS) {
    list.ranks[i] = list.kept_ranks[i];
    list.indices[i] = list.kept_indices[i];
  }
  __syncthreads();
}

// A list that grows by up to MOST_NEW candidates at a time, and never holds more than k in between.
struct Selection {
  List& list;
  int k;
  int size = 0;

  __device__ void push(int at, Rank rank, int32_t index) const {  // at: beyond `size`
    list.ranks[size + at] = rank;
    list.indices[size + at] = index;
  }
  // All threads, after a barrier that follows the pushes.
  __device__ void grow(int num_pushed) {
    size += num_pushed;
    if (size <= k) return;
    keep_highest(list, size, k);
    size = k;
  }
};

// Falling score, then rising index; `keys` is shared memory for MOST_CHOSEN.
__device__ inline void write_sorted(Selection const& s, uint64_t* keys, int64_t* chosen) {
  int const thread = static_cast<int>(threadIdx.x);
  int length = 1;
  while (length < s.size) length *= 2;
  for (int i = thread; i < length; i += THREADS) {
    uint64_t const falling = 0xffffu - s.list.ranks[i < s.size ? i : 0];
    keys[i] = i < s.size ? falling << 32 | static_cast<uint32_t>(s.list.indices[i]) : ~uint64_t{0};
  }
  __syncthreads();
#pragma unroll 1
  for (int run = 2; run <= length; run *= 2) {
#pragma unroll 1
    for (int step = run / 2; step; step /= 2) {
      for (int i = thread; i < length / 2; i += THREADS) {
        int const low = i / step * 2 * step + i % step, high = low + step;
        uint64_t const a = keys[low], b = keys[high];
        if ((a > b) == ((low & run) == 0)) keys[low] = b, keys[high] = a;
      }
      __syncthreads();
    }
  }
  for (int i = thread; i < s.k; i += THREADS) chosen[i] = i < s.size ? static_cast<int64_t>(keys[i] & 0xffffffffu) : -1;
}

__device__ inline void write_candidates(Selection const& s, Candidate* candidates, int32_t* count) {
  for (int i = static_cast<int>(threadIdx.x); i < s.size; i += THREADS) {
    candidates[i] = {s.list.ranks[i], s.list.indices[i]};
  }
  if (threadIdx.x == 0) *count = s.size;
}

template <int width, int heads, bool packed = false>
struct Config {
  static constexpr int WIDTH = width, HEADS = heads, PIECES = WIDTH / PIECE;
  static constexpr bool PACKED = packed;  // the keys
  static constexpr int ROW_BYTES = PACKED ? packed_key_bytes(WIDTH) : WIDTH * static_cast<int>(sizeof(bf16));
  static constexpr int HEADS_AT_ONCE = HEADS < 32 ? HEADS : 32;  // registers: two blocks shall share a multiprocessor
  static constexpr int HEAD_TILES = HEADS_AT_ONCE / MMA_COLUMNS;
  static_assert(WIDTH % 32 == 0 && HEADS % HEADS_AT_ONCE == 0);
};

template <class C>
struct Shared {
  alignas(16) bf16 q[C::HEADS * C::WIDTH];
  alignas(16) bf16 keys[STAGES][TILE * C::WIDTH];  // at the end: what is sorted
  float weights[C::HEADS];
  List list;
  static_assert(sizeof(keys) >= MOST_CHOSEN * sizeof(uint64_t));
};

// Rows narrower than 8 pieces share the 8 places of a swizzle with the next one.
template <int width>
__device__ inline int at_piece(int row, int piece) {
  constexpr int PIECES = width / PIECE;
  if constexpr (PIECES % 8 == 0) {
    return row * width + swizzled(row, piece) * PIECE;
  } else {
    return row * width + (piece ^ (row / 2 & (PIECES - 1))) * PIECE;
  }
}

// Keys [first, first + TILE) of those below `num_keys` into a stage, zeros beyond; packed ones as they are, each to where
// widen_keys() makes bf16 of it. One group.
template <class C>
__device__ inline void load_keys(bf16* stage, uint8_t const* keys, int64_t first, int num_keys) {
  constexpr int WORD = 4, COPIES = C::PACKED ? C::ROW_BYTES / WORD : C::PIECES;
  for (int i = static_cast<int>(threadIdx.x); i < TILE * COPIES; i += THREADS) {
    int const row = i / COPIES, part = i % COPIES;
    bool const exists = first + row < num_keys;
    uint8_t const* const from = keys + (exists ? (first + row) * C::ROW_BYTES : 0);
    if constexpr (C::PACKED) {
      copy_bytes<WORD>(reinterpret_cast<uint8_t*>(stage + row * C::WIDTH) + part * WORD, from + part * WORD, exists);
    } else {
      copy_piece(stage + at_piece<C::WIDTH>(row, part), from + part * PIECE * sizeof(bf16), exists);
    }
  }
}

// This warp's packed keys become bf16 where they lie: its lanes have read a row before they write it.
template <class C>
__device__ inline void widen_keys(bf16* stage) {
  constexpr int ROWS_AT_ONCE = LANES / C::PIECES, STEPS = MMA_ROWS / ROWS_AT_ONCE;
  int const lane = static_cast<int>(threadIdx.x) % LANES, warp = static_cast<int>(threadIdx.x) / LANES;
  int const first = warp * MMA_ROWS + lane / C::PIECES, piece = lane % C::PIECES;
  uint32_t codes[STEPS], scales[STEPS];
#pragma unroll
  for (int i = 0; i < STEPS; ++i) {
    auto const* const row = reinterpret_cast<uint8_t const*>(stage + (first + i * ROWS_AT_ONCE) * C::WIDTH);
    codes[i] = reinterpret_cast<uint32_t const*>(row)[piece];
    scales[i] = row[C::WIDTH / 2 + piece * PIECE / KEY_SCALE_BLOCK];
  }
  __syncwarp();
#pragma unroll
  for (int i = 0; i < STEPS; ++i) {
    *reinterpret_cast<uint4*>(stage + at_piece<C::WIDTH>(first + i * ROWS_AT_ONCE, piece)) = widened_e2m1(codes[i], scales[i]);
  }
  __syncwarp();
}

// dots = rounded(einsum("hd,jd->hj", q, keys)).relu();  rounded(rounded(dots * w).sum(0)) of this warp's 16 keys.
// A lane returns the scores of keys lane/4 and lane/4 + 8, before the last rounding.
template <class C>
__device__ inline float2 scores_of(Shared<C> const& s, bf16 const* stage) {
  int const lane = static_cast<int>(threadIdx.x) % LANES, warp = static_cast<int>(threadIdx.x) / LANES;
  float sum[2] = {};
#pragma unroll 1
  for (int head = 0; head < C::HEADS; head += C::HEADS_AT_ONCE) {
    float dot[C::HEAD_TILES][4] = {};
#pragma unroll 2
    for (int d = 0; d < C::WIDTH; d += 2 * MMA_DEPTH) {
      uint32_t a[2][4];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        load_matrices(a[i], stage + at_piece<C::WIDTH>(warp * MMA_ROWS + lane % 16, (d + i * MMA_DEPTH) / PIECE + lane / 16));
      }
#pragma unroll
      for (int tile = 0; tile < C::HEAD_TILES; ++tile) {
        uint32_t b[4];
        load_matrices(b, s.q + at_piece<C::WIDTH>(head + tile * MMA_COLUMNS + lane % 8, d / PIECE + lane / 8));
        multiply_add(dot[tile], a[0], b[0], b[1]);
        multiply_add(dot[tile], a[1], b[2], b[3]);
      }
    }
#pragma unroll
    for (int tile = 0; tile < C::HEAD_TILES; ++tile) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        float const x = float_from(bf16_from(dot[tile][i]));
        float const weight = s.weights[head + tile * MMA_COLUMNS + lane % 4 * 2 + i % 2];
        sum[i / 2] += float_from(bf16_from((x < 0 ? 0.0f : x) * weight));  // a NaN stays one
      }
    }
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    sum[i] += __shfl_xor_sync(0xffffffffu, sum[i], 1);
    sum[i] += __shfl_xor_sync(0xffffffffu, sum[i], 2);
  }
  return make_float2(sum[0], sum[1]);
}

// Grid: query x split. With one split `chosen` is written, else each split's candidates, [query, split, k], and counts.
template <class C>
__global__ void __launch_bounds__(THREADS, 2)
    score(bf16 const* q, bf16 const* weights, uint8_t const* keys, int64_t const* slots, int64_t const* positions,
          int64_t const* num_new, int64_t* chosen, Candidate* candidates, int32_t* counts, float root, int num_tokens,
          int num_heads, int num_key_rows, int k, int ratio) {
  extern __shared__ __align__(16) unsigned char score_memory[];
  auto& s = *reinterpret_cast<Shared<C>*>(score_memory);
  int const thread = static_cast<int>(threadIdx.x), lane = thread % LANES, warp = thread / LANES;
  int64_t const query = blockIdx.x, b = query / num_tokens, t = query % num_tokens, part = query * gridDim.y + blockIdx.y;
  bool const padding = t >= num_new[b];
  int const visible = padding ? 0 : min(static_cast<int>((positions[b] + t + 1) / ratio), num_key_rows - 1);
  int64_t const tiles = (visible + TILE - 1) / TILE;
  int64_t const first_tile = tiles * blockIdx.y / gridDim.y, num_tiles = tiles * (blockIdx.y + 1) / gridDim.y - first_tile;
  if (num_tiles == 0) {
    if (candidates && thread == 0) counts[part] = 0;
    for (int i = thread; !candidates && i < k; i += THREADS) chosen[query * k + i] = -1;
    return;
  }
  keys += slots[b] * num_key_rows * C::ROW_BYTES;
  q += query * num_heads * C::WIDTH;
  for (int i = thread; i < C::HEADS * C::PIECES; i += THREADS) {
    int const head = i / C::PIECES, piece = i % C::PIECES;
    bool const exists = head < num_heads;
    copy_piece(s.q + at_piece<C::WIDTH>(head, piece), q + (exists ? head * C::WIDTH + piece * PIECE : 0), exists);
  }
  for (int i = thread; i < C::HEADS; i += THREADS) {
    s.weights[i] = i < num_heads ? float_from(bf16_from(float_from(weights[query * num_heads + i]) * root)) : 0.0f;
  }
  load_keys<C>(s.keys[0], keys, first_tile * TILE, visible);
  commit_copies();

  Selection selection{s.list, k};
  int num_pushed = 0;
  for (int64_t i = 0; i < num_tiles; ++i) {
    int64_t const first = (first_tile + i) * TILE;
    if (i + 1 < num_tiles) load_keys<C>(s.keys[(i + 1) % STAGES], keys, first + TILE, visible);
    commit_copies();
    wait_copies<STAGES - 1>();
    __syncthreads();  // this tile's keys, the queries and the weights are here
    if constexpr (C::PACKED) widen_keys<C>(s.keys[i % STAGES]);
    float2 const score = scores_of(s, s.keys[i % STAGES]);
    int const row = warp * MMA_ROWS + lane / 4, here = static_cast<int>(min(visible - first, int64_t{TILE}));
    if (lane % 4 == 0) {
      if (row < here) selection.push(num_pushed + row, rank_from(score.x), static_cast<int32_t>(first + row));
      if (row + 8 < here) selection.push(num_pushed + row + 8, rank_from(score.y), static_cast<int32_t>(first + row + 8));
    }
    num_pushed += here;
    __syncthreads();  // the scores are pushed; this tile's stage is free
    if (num_pushed == MOST_NEW || i + 1 == num_tiles) {
      selection.grow(num_pushed);
      num_pushed = 0;
    }
  }
  if (candidates) return write_candidates(selection, candidates + part * k, counts + part);
  write_sorted(selection, reinterpret_cast<uint64_t*>(s.keys), chosen + query * k);
}

// Grid: query x group of up to `fan_in` lists. The lists of `num_parts` splits become gridDim.y lists, or `chosen`.
__global__ void __launch_bounds__(THREADS, 2)
    merge(Candidate const* from, int32_t const* from_counts, int64_t* chosen, Candidate* to, int32_t* to_counts, int num_parts,
          int fan_in, int k) {
  __shared__ List list;
  __shared__ uint64_t keys[MOST_CHOSEN];
  int64_t const query = blockIdx.x, part = query * gridDim.y + blockIdx.y;
  int const thread = static_cast<int>(threadIdx.x), first = static_cast<int>(blockIdx.y) * fan_in;
  Selection selection{list, k};
  for (int i = first; i < min(first + fan_in, num_parts); ++i) {
    int64_t const at = query * num_parts + i;
    int const count = from_counts[at];
    for (int begin = 0; begin < count; begin += MOST_NEW) {
      int const here = min(count - begin, MOST_NEW);
      for (int j = thread; j < here; j += THREADS) {
        Candidate const c = from[at * k + begin + j];
        selection.push(j, static_cast<Rank>(c.rank), c.index);
      }
      __syncthreads();
      selection.grow(here);
    }
  }
  if (to) return write_candidates(selection, to + part * k, to_counts + part);
  write_sorted(selection, keys, chosen + query * k);
}

}  // namespace ds4::indexer_topk
