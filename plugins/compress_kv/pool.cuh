// pool: the entries that a chunk completes -> cache; append: its last rows -> ring. See compress_kv.cuh.
#pragma once
#include "common/a8_64.cuh"
#include "common/hadamard_fp4.cuh"
#include "common/packed_rows.cuh"
#include "common/rope.cuh"
#include "compress_kv/compress_kv.cuh"
#include "compress_kv/pack_key.cuh"

namespace ds4::compress_kv {

constexpr int BATCH = 8;  // rows that a thread holds at a time
constexpr int MOST_ROWS = 128;  // of an entry
static_assert(MOST_ROWS % BATCH == 0);

// Softmax-weighted sum over the rows seen so far, of a thread's channels: sum / weight is the mean.
struct alignas(16) Pooled {
  float largest[CHANNELS], weight[CHANNELS], sum[CHANNELS];

  // From one running maximum to a larger one; -inf as long as no row exists.
  __device__ void rescale(int k, float next) {
    float const fade = next == -INFINITY ? 1.0f : expf(largest[k] - next);
    largest[k] = next, weight[k] *= fade, sum[k] *= fade;
  }
  __device__ void add(Pack<float, CHANNELS> const (&u)[BATCH], Pack<float, CHANNELS> const (&s)[BATCH]) {
#pragma unroll
    for (int k = 0; k < CHANNELS; ++k) {
      float next = largest[k];
#pragma unroll
      for (int r = 0; r < BATCH; ++r) next = fmaxf(next, s[r].value[k]);
      rescale(k, next);
      float const shift = next == -INFINITY ? 0.0f : next;
#pragma unroll
      for (int r = 0; r < BATCH; ++r) {
        float const share = expf(s[r].value[k] - shift);
        weight[k] += share;
        sum[k] += share * u[r].value[k];
      }
    }
  }
  __device__ void add(Pooled other) {
#pragma unroll
    for (int k = 0; k < CHANNELS; ++k) {
      float const next = fmaxf(largest[k], other.largest[k]);
      rescale(k, next);
      other.rescale(k, next);
      weight[k] += other.weight[k], sum[k] += other.sum[k];
    }
  }
};

constexpr Pooled NOTHING = {{-INFINITY, -INFINITY, -INFINITY, -INFINITY}, {}, {}};

// How the three ops differ: overlapping blocks, teams of threads that share the rows of an entry, the last rounding of the
// channels from `channel` on, of which those from `num_plain` on are roped, and the packed form of their row.
struct KvEntry {
  static constexpr int MOST_WIDTH = 512;
  __device__ static void finish(float (&value)[CHANNELS], int channel, int num_plain) { a8_64_round_trip(value, num_plain - channel); }
  __device__ static void pack(Pack<bf16, CHANNELS> const& entry, int channel, int width, int num_plain, uint8_t* row) {
    pack_kv(entry, channel, {width, num_plain}, row);
  }
  // 0: such a row has no packed form.
  static int packed_bytes(int width, int num_roped) { return width % 8 || num_roped % 8 ? 0 : packed_kv_bytes(width, num_roped); }
};
struct Csa : KvEntry {
  static constexpr bool OVERLAP = true;
  static constexpr int TEAMS = 1;
};
struct Hca : KvEntry {
  static constexpr bool OVERLAP = false;
  static constexpr int TEAMS = 4;
};
struct Index {
  static constexpr bool OVERLAP = true;
  static constexpr int MOST_WIDTH = 128, TEAMS = 1;
  __device__ static void finish(float (&value)[CHANNELS], int, int) { hadamard_fp4<MOST_WIDTH>(value); }
  __device__ static void pack(Pack<bf16, CHANNELS> const& key, int channel, int, int, uint8_t* row) { pack_key(key, channel, row); }
  static int packed_bytes(int width, int) { return packed_key_bytes(width); }
};

template <class Op>
constexpr int TEAM = Op::MOST_WIDTH / CHANNELS;
template <class Op>
constexpr int THREADS = Op::TEAMS * TEAM<Op>;

// Where the rows of entry `number` are, or the halves of them that it pools; null: there is no such row, up to a whole BATCH.
// All threads; a barrier must follow.
template <class Op>
__device__ inline void find_rows(float const* (&places)[MOST_ROWS], Sequence const& own, int number, int num_rows, int ratio, int width) {
  int const end = (number + 1) * ratio;
#pragma unroll 1
  for (int i = static_cast<int>(threadIdx.x); i < (num_rows + BATCH - 1) / BATCH * BATCH; i += THREADS<Op>) {
    int const at = end - num_rows + i, half = Op::OVERLAP && at >= end - ratio ? width : 0;
    places[i] = at >= 0 && at < end ? own.row(at) + half : nullptr;
  }
}

// This team's share of the rows: Σ softmax(s)·u of a thread's channels. u and s of a row are `apart`.
template <class Op>
__device__ inline Pooled pool_rows(float const* const (&places)[MOST_ROWS], int num_rows, int apart, int team, int channel) {
  Pooled pooled = NOTHING;
  for (int base = team * BATCH; base < num_rows; base += Op::TEAMS * BATCH) {
    Pack<float, CHANNELS> u[BATCH], s[BATCH];
#pragma unroll
    for (int r = 0; r < BATCH; ++r) {
      float const* const row = places[base + r];
      u[r] = {}, s[r] = {-INFINITY, -INFINITY, -INFINITY, -INFINITY};
      if (!row) continue;
      u[r] = load<CHANNELS>(row + channel);
      s[r] = load<CHANNELS>(row + apart + channel);
    }
    pooled.add(u, s);
  }
  return pooled;
}

// Grid: sequences x entries that a chunk of this length may complete, the first of them being that of the open block.
template <class Op>
__global__ void __launch_bounds__(THREADS<Op>)
    pool(Rows const rows, bf16 const* norm, float const* freqs, uint8_t* cache, int num_entries, int num_cache_rows, int row_bytes, int ratio,
         int width, int num_freqs, float eps) {
  __shared__ Pooled shares[Op::TEAMS == 1 ? 1 : THREADS<Op>];
  __shared__ float const* places[MOST_ROWS];
  __shared__ Turn turns[Op::MOST_WIDTH / 2];
  __shared__ float scratch[THREADS<Op> / LANES];
  int const thread = static_cast<int>(threadIdx.x), team = thread / TEAM<Op>, channel = thread % TEAM<Op> * CHANNELS;
  int64_t const b = blockIdx.x / num_entries;
  Sequence const own = rows.sequence(b);
  int const number = own.position / ratio + static_cast<int>(blockIdx.x % num_entries);
  if (number >= min((own.position + own.num_new) / ratio, num_cache_rows - 1)) return;
  int const num_rows = Op::OVERLAP ? 2 * ratio : ratio;
  find_rows<Op>(places, own, number, num_rows, ratio, width);
  write_turns<THREADS<Op>>(turns, number * ratio, freqs, num_freqs, thread);
  __syncthreads();  // the places of the rows and the turns are known

  // pooled = rounded((weight * u).sum(0))
  Pooled pooled = NOTHING;
  if (channel < width) pooled = pool_rows<Op>(places, num_rows, own.columns / 2, team, channel);
  if constexpr (Op::TEAMS > 1) {
    shares[thread] = pooled;
    __syncthreads();  // the shares of all teams are written
#pragma unroll
    for (int i = 1; i < Op::TEAMS; ++i) {
      if (team == 0) pooled.add(shares[i * TEAM<Op> + thread]);
    }
  }
  bool const owns = team == 0 && channel < width;
  float value[CHANNELS], squares = 0;
#pragma unroll
  for (int k = 0; k < CHANNELS; ++k) {
    value[k] = owns ? rounded(pooled.sum[k] / pooled.weight[k]) : 0.0f;
    squares += value[k] * value[k];
  }

  // entry = rope(rounded(rms(pooled, norm, eps)), j * m)
  float const scale = 1.0f / sqrtf(block_sum<THREADS<Op>>(squares, scratch) / static_cast<float>(width) + eps);
  if (team) return;
  Pack<bf16, CHANNELS> entry = {};
  if (owns) entry = load<CHANNELS>(norm + channel);
#pragma unroll
  for (int k = 0; k < CHANNELS; ++k) value[k] = rounded(value[k] * scale * float_from(entry.value[k]));
  int const num_plain = width - 2 * num_freqs;
  rotate(value, channel - num_plain, turns, num_freqs);
#pragma unroll
  for (float& v : value) v = rounded(v);

  // cache[slot, j] = finish(entry)
  Op::finish(value, channel, num_plain);
#pragma unroll
  for (int k = 0; k < CHANNELS; ++k) entry.value[k] = bf16_from(value[k]);
  uint8_t* const to = cache + (rows.slots[b] * num_cache_rows + number) * row_bytes;
  if (row_bytes != width * static_cast<int>(sizeof(bf16))) {
    Op::pack(entry, channel, width, num_plain, to);
  } else if (owns) {
    store<CHANNELS>(reinterpret_cast<bf16*>(to) + channel, entry);
  }
}

constexpr int APPEND_THREADS = 256;

// Grid: sequences x as many tokens as a chunk of this length leaves in the ring. ring[at % R] = rows[-R:]
__global__ void __launch_bounds__(APPEND_THREADS) append(Rows const rows, int num_kept) {
  Sequence const own = rows.sequence(blockIdx.x / num_kept);
  int const t = own.num_new - num_kept + static_cast<int>(blockIdx.x % num_kept);
  if (t < 0) return;
  float const* const from = own.row(own.position + t);
  float* const to = own.ring + int64_t{(own.position + t) % own.ring_length} * own.columns;
  for (int i = static_cast<int>(threadIdx.x) * CHANNELS; i < own.columns; i += APPEND_THREADS * CHANNELS) {
    store<CHANNELS>(to + i, load<CHANNELS>(from + i));
  }
}

}  // namespace ds4::compress_kv
