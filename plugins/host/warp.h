// Instructions that the 32 lanes of a warp execute together: shuffles, votes, ldmatrix, mma.
//
// Fragment maps are those of the PTX manual; tests/ptxhost/test_warp.py checks them against numpy products.
#pragma once
#include <cstdint>

namespace ds4::host {

struct Shuffled {
  uint32_t value;
  bool in_range;
};
enum class Shuffle { UP, DOWN, BUTTERFLY, INDEX };
Shuffled shuffle(Shuffle kind, uint32_t value, uint32_t operand, uint32_t clamp, uint32_t mask, int line = __builtin_LINE());

uint32_t ballot(bool value, uint32_t mask, int line = __builtin_LINE());
inline bool vote_any(bool v, uint32_t mask, int line = __builtin_LINE()) { return ballot(v, mask, line) != 0; }
inline bool vote_all(bool v, uint32_t mask, int line = __builtin_LINE()) { return ballot(!v, mask, line) == 0; }

enum class Reduce { ADD, MIN, MAX, AND, OR, XOR };
uint32_t reduce(Reduce kind, bool is_signed, uint32_t value, uint32_t mask, int line = __builtin_LINE());
uint32_t match_any(uint32_t value, uint32_t mask, int line = __builtin_LINE());

// `num` 8x8 matrices of 16-bit elements; lane 8·i+r brings the address of row r of matrix i.
void load_matrices(uint32_t* out, int num, bool transposed, uint64_t row, int line = __builtin_LINE());

// d += a·b of one warp; a and b as the registers of each lane.
void mma_m16n8k16_bf16(float (&d)[4], uint32_t const (&a)[4], uint32_t const (&b)[2], int line = __builtin_LINE());
void mma_m16n8k16_f16(float (&d)[4], uint32_t const (&a)[4], uint32_t const (&b)[2], int line = __builtin_LINE());
void mma_m16n8k8_bf16(float (&d)[4], uint32_t const (&a)[2], uint32_t const (&b)[1], int line = __builtin_LINE());
void mma_m16n8k32_e4m3(float (&d)[4], uint32_t const (&a)[4], uint32_t const (&b)[2], int line = __builtin_LINE());

}  // namespace ds4::host
