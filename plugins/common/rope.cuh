// Rotary embedding: the last 2·num_freqs dims of a row in pairs of neighbours, in float32, as `rope` of ds4export/ops/_numerics.py.
//
// Maths     (a, b) -> (a·cos - b·sin, a·sin + b·cos); every product and sum is rounded, as torch has it: no fused multiply-add
// Use       write_turns() by the threads that share a position, their barrier, then rotate() on each piece of the rows: cos and
//           sin are computed once per position and frequency, whatever number of heads is turned by them
#pragma once
#include "common/turn.cuh"

namespace ds4 {

// turns[f] is of frequency f; TEAM threads share the work, this one is `member` of them. A barrier of the team must follow.
template <int TEAM>
__device__ inline void write_turns(Turn* turns, int position, float const* freqs, int num_freqs, int member) {
  for (int f = member; f < num_freqs; f += TEAM) turns[f] = turn_from(position, freqs[f]);
}

__device__ inline void rotate(float& a, float& b, Turn turn) {
  float const x = __fsub_rn(__fmul_rn(a, turn.cos), __fmul_rn(b, turn.sin));
  b = __fadd_rn(__fmul_rn(a, turn.sin), __fmul_rn(b, turn.cos));
  a = x;
}

// NUM neighbours of a row, the first of them `offset` dims behind the first roped dim (negative: before it; always even). Pairs
// outside of the roped dims stay as they are.
template <int NUM>
__device__ inline void rotate(float (&value)[NUM], int offset, Turn const* turns, int num_freqs) {
  static_assert(NUM % 2 == 0, "pairs");
#pragma unroll
  for (int k = 0; k < NUM; k += 2) {
    int const dim = offset + k;
    if (dim >= 0 && dim < 2 * num_freqs) rotate(value[k], value[k + 1], turns[dim / 2]);
  }
}

}  // namespace ds4
