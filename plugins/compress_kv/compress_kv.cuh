// compress_kv: tokens -> rows u ++ s of the ring, and blocks of them pooled into cache entries; compress_csa, _hca and _index share it
//
// Maths     u_p = wkv·x_p, s_p = wgate·x_p + ape[p mod m];  entry j = finish(rope_{j·m}(rms(Σ softmax(s)·u, norm))), a softmax per
//           channel over tokens m·j .. m·j+m-1 (hca, m 128), or over half A of tokens m(j-1) .. m·j-1 and half B of tokens
//           m·j .. m·j+m-1 (csa, index, m 4); finish = A8(64) of the dims without rope (csa, hca), Hadamard and FP4 (index);
//           reference: ds4export/ops/_compress.py
// Shapes    x [B, T, D] bf16, wkv and wgate [c·d, D] bf16, ape [m, c·d] f32, norm [d] bf16 -> pending [S, R + 1, 2·c·d] f32, row
//           p mod R = u ++ s of position p, cache [S, C + 1, d] bf16 or [S, C + 1, bytes] packed (common/packed_rows.cuh), row
//           j = entry j; c = 2 with halves, else 1. The last row of either is scratch and is left alone
// Layout    rows contiguous, 16-byte aligned, packed ones 8, of keys 4; 64-bit offsets
// Roofline  decode: 4·c·d·D bytes of weights, 4·c·d·D flop a token: memory side to some 200 tokens. Flash csa 16.8, hca 8.4, index 4.2
//           MB, Pro 29.4, 14.7, 7.3 MB. An entry reads (csa, index) 64·d or (hca) 1024·d bytes once: 33 or 524 KB at d 512
// Tiling    1. project: rows of wkv and wgate (grid z) x tokens: few tokens stream_rows.cuh, many tile_product.cuh
//           2. pool: block = one entry that the chunk may complete; a lane = 4 channels; TEAMS teams of threads share its rows:
//
//                table of the rows' places, turns of the rope     shared memory: barrier
//                rows of the block   | 8: team 0 | 8: team 1 | ... | 8: team 0 |     8 rows of u and s in registers at a time,
//                                                                                   a running softmax per channel
//                teams -> one        largest, weight, sum of each in shared memory, added in their order: barrier (hca)
//                norm                sum of squares over the block: barrier.  rope, finish: team 0, in its warps
//
//           3. append: the chunk's last R rows -> ring
// Order     a chunk's rows go to the workspace, and append() is launched after pool(), the last reader of the rows that they replace:
//           blocks of one launch could overtake each other. A chunk of one token has no need of either: it makes its row in the
//           ring at once, where it replaces position p - R, and no entry that p completes reads below p - R + 1 (R >= c·m)
// Numerics  bf16 mma, float32 sums of 64 columns added in float32; ape added to the sum; float32 softmax, Σ exp(s - max)·u divided
//           once; bf16 after pooling, norm and rope. Rows of positions below 0 are never read: u = 0, s = -inf
// Limits    d a multiple of 4 up to 512, packed: d and its roped dims of 8 (index: d 128); c·m up to 128; any T, B, D (D not a
//           multiple of 8: value by value); positions below 2^31; entries past the cache are not written. From 33 to some 500
//           tokens the tiles of project are few, for 256 tokens 32 (csa), 16 (hca), 8 (index): most multiprocessors idle, where
//           parts of the columns apart would occupy them
// Measured  not run on a GPU; every case run on the host from its PTX: rows of the ring within 2e-7 of the reference, entries equal
//           but for single roundings, at most 9e-5 of an entry
#pragma once
#include "common/vector.cuh"

namespace ds4::compress_kv {

constexpr int CHANNELS = 4;  // of a thread of pool()

// One row of the batch: where the row u ++ s of a position is.
struct Sequence {
  float* ring;
  float* fresh;  // rows of the chunk; null: they are made in the ring
  int position, num_new, ring_length, columns;

  __device__ float* row(int at) const {
    return fresh && at >= position ? fresh + int64_t{at - position} * columns : ring + int64_t{at % ring_length} * columns;
  }
};

// The rows of all sequences, [S, ring_length + 1, columns], and of their chunks, [B, num_tokens, columns].
struct Rows {
  float* ring;
  float* fresh;
  int64_t const* slots;
  int64_t const* positions;
  int64_t const* num_new;
  int num_tokens, ring_length, columns;

  __device__ Sequence sequence(int64_t b) const {
    float* const chunk = fresh ? fresh + b * num_tokens * columns : nullptr;
    return {ring + slots[b] * (ring_length + 1) * columns, chunk, static_cast<int>(positions[b]), static_cast<int>(num_new[b]), ring_length, columns};
  }
};

}  // namespace ds4::compress_kv
