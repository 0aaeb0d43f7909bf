#include "warp.h"

#include <algorithm>

#include "block.h"
#include "formats.h"
#include "sanitizers.h"

namespace ds4::host {
namespace {

constexpr uint32_t ALL = 0xffffffffu;

template <class T>
T& slot(Slots const& slots, uint32_t lane) { return *static_cast<T*>(slots[lane]); }

bool takes_part(uint32_t mask, uint32_t lane) { return mask >> lane & 1; }

struct ShuffleSlot {
  Shuffle kind;
  uint32_t value, operand, clamp;
  Shuffled result;
};

// The PTX manual's own pseudocode of shfl.sync: segments of a power of two lanes, and the last lane of reach.
void shuffle_lane(Slots const& slots, uint32_t mask, uint32_t lane, int line) {
  auto& s = slot<ShuffleSlot>(slots, lane);
  uint32_t const b = s.operand & 31, c = s.clamp & 31, segment = s.clamp >> 8 & 31;
  uint32_t const most = (lane & segment) | (c & ~segment), least = lane & segment;
  uint32_t source = lane;
  bool valid = false;
  switch (s.kind) {
    case Shuffle::UP: source = lane - b; valid = static_cast<int>(source) >= static_cast<int>(most); break;
    case Shuffle::DOWN: source = lane + b; valid = source <= most; break;
    case Shuffle::BUTTERFLY: source = lane ^ b; valid = source <= most; break;
    case Shuffle::INDEX: source = least | (b & ~segment); valid = source <= most; break;
  }
  if (!valid) source = lane;
  if (!takes_part(mask, source)) fault(line, "lane %u reads lane %u, which is not in mask %08x", lane, source, mask);
  s.result = {slot<ShuffleSlot>(slots, source).value, valid};
}

struct VoteSlot {
  bool value;
  uint32_t result;
};

struct ReduceSlot {
  Reduce kind;
  bool is_signed;
  uint32_t value, result;
};

uint32_t combined(ReduceSlot const& s, uint32_t a, uint32_t b) {
  bool const less = s.is_signed ? static_cast<int32_t>(a) < static_cast<int32_t>(b) : a < b;
  switch (s.kind) {
    case Reduce::ADD: return a + b;
    case Reduce::MIN: return less ? a : b;
    case Reduce::MAX: return less ? b : a;
    case Reduce::AND: return a & b;
    case Reduce::OR: return a | b;
    case Reduce::XOR: return a ^ b;
  }
  return 0;
}

struct MatrixSlot {
  int num;
  bool transposed;
  unsigned char const* row;
  uint32_t* out;
};

uint32_t element(MatrixSlot const& s, int column) {
  return s.row[2 * column] | static_cast<uint32_t>(s.row[2 * column + 1]) << 8;
}

struct MmaSlot {
  float* d;
  uint32_t const *a, *b;
};

// Products are exact in double; the sum of a step is rounded once. A GPU truncates inside (numerics notes).
template <int K, int BITS, float (*value_of)(uint32_t)>
void multiply(Slots const& slots, uint32_t, int) {
  constexpr int PER_REGISTER = 32 / BITS, HALF = 4 * PER_REGISTER;  // of k, held by the four lanes of a row
  constexpr uint32_t CODE = (1u << BITS) - 1;
  float a[16][K], b[K][8];
  for (uint32_t lane = 0; lane < 32; ++lane) {
    auto const& s = slot<MmaSlot>(slots, lane);
    int const group = static_cast<int>(lane) / 4, member = static_cast<int>(lane) % 4;
    for (int half = 0; half < K / HALF; ++half) {
      for (int e = 0; e < PER_REGISTER; ++e) {
        int const k = half * HALF + member * PER_REGISTER + e;
        a[group][k] = value_of(s.a[2 * half] >> (BITS * e) & CODE);
        a[group + 8][k] = value_of(s.a[2 * half + 1] >> (BITS * e) & CODE);
        b[k][group] = value_of(s.b[half] >> (BITS * e) & CODE);
      }
    }
  }
  for (uint32_t lane = 0; lane < 32; ++lane) {
    float* const d = slot<MmaSlot>(slots, lane).d;
    for (int e = 0; e < 4; ++e) {
      int const row = static_cast<int>(lane) / 4 + e / 2 * 8, column = static_cast<int>(lane) % 4 * 2 + e % 2;
      double sum = static_cast<double>(d[e]);
      for (int k = 0; k < K; ++k) sum += static_cast<double>(a[row][k]) * static_cast<double>(b[k][column]);
      d[e] = static_cast<float>(sum);
    }
  }
}

float bf16_value(uint32_t code) { return float_from_bf16(static_cast<uint16_t>(code)); }
float f16_value(uint32_t code) { return static_cast<float>(decode(F16, code)); }
float e4m3_value(uint32_t code) { return static_cast<float>(decode(E4M3, code)); }

}  // namespace

Shuffled shuffle(Shuffle kind, uint32_t value, uint32_t operand, uint32_t clamp, uint32_t mask, int line) {
  ShuffleSlot s{kind, value, operand, clamp, {}};
  exchange(mask, &s, [](Slots const& slots, uint32_t lanes, int at) {
    for (uint32_t lane = 0; lane < 32; ++lane) {
      if (takes_part(lanes, lane)) shuffle_lane(slots, lanes, lane, at);
    }
  }, line);
  return s.result;
}

uint32_t ballot(bool value, uint32_t mask, int line) {
  VoteSlot s{value, 0};
  exchange(mask, &s, [](Slots const& slots, uint32_t lanes, int) {
    uint32_t bits = 0;
    for (uint32_t lane = 0; lane < 32; ++lane) {
      if (takes_part(lanes, lane)) bits |= static_cast<uint32_t>(slot<VoteSlot>(slots, lane).value) << lane;
    }
    for (uint32_t lane = 0; lane < 32; ++lane) {
      if (takes_part(lanes, lane)) slot<VoteSlot>(slots, lane).result = bits;
    }
  }, line);
  return s.result;
}

uint32_t reduce(Reduce kind, bool is_signed, uint32_t value, uint32_t mask, int line) {
  ReduceSlot s{kind, is_signed, value, 0};
  exchange(mask, &s, [](Slots const& slots, uint32_t lanes, int) {
    ReduceSlot* first = nullptr;
    uint32_t total = 0;
    for (uint32_t lane = 0; lane < 32; ++lane) {
      if (!takes_part(lanes, lane)) continue;
      auto& own = slot<ReduceSlot>(slots, lane);
      total = first ? combined(own, total, own.value) : own.value;
      first = &own;
    }
    for (uint32_t lane = 0; lane < 32; ++lane) {
      if (takes_part(lanes, lane)) slot<ReduceSlot>(slots, lane).result = total;
    }
  }, line);
  return s.result;
}

uint32_t match_any(uint32_t value, uint32_t mask, int line) {
  ReduceSlot s{Reduce::OR, false, value, 0};
  exchange(mask, &s, [](Slots const& slots, uint32_t lanes, int) {
    for (uint32_t lane = 0; lane < 32; ++lane) {
      if (!takes_part(lanes, lane)) continue;
      auto& own = slot<ReduceSlot>(slots, lane);
      own.result = 0;
      for (uint32_t other = 0; other < 32; ++other) {
        bool const equal = takes_part(lanes, other) && slot<ReduceSlot>(slots, other).value == own.value;
        own.result |= static_cast<uint32_t>(equal) << other;
      }
    }
  }, line);
  return s.result;
}

void load_matrices(uint32_t* out, int num, bool transposed, uint64_t row, int line) {
  auto* const at = reinterpret_cast<unsigned char const*>(row);
  if (thread_rank % 32 < static_cast<uint32_t>(8 * num)) {
    if (row % 16) fault(line, "ldmatrix from a misaligned row");
    mark_read(at, 16);
  }
  MatrixSlot s{num, transposed, at, out};
  exchange(ALL, &s, [](Slots const& slots, uint32_t, int) {
    for (uint32_t lane = 0; lane < 32; ++lane) {
      auto const& own = slot<MatrixSlot>(slots, lane);
      uint32_t const r = lane / 4;
      int const c = static_cast<int>(lane) % 4 * 2;
      for (int m = 0; m < own.num; ++m) {
        uint32_t const base = static_cast<uint32_t>(8 * m);
        uint32_t const low = own.transposed ? element(slot<MatrixSlot>(slots, base + static_cast<uint32_t>(c)), static_cast<int>(r))
                                            : element(slot<MatrixSlot>(slots, base + r), c);
        uint32_t const high = own.transposed ? element(slot<MatrixSlot>(slots, base + static_cast<uint32_t>(c) + 1), static_cast<int>(r))
                                             : element(slot<MatrixSlot>(slots, base + r), c + 1);
        own.out[m] = high << 16 | low;
      }
    }
  }, line);
}

void mma_m16n8k16_bf16(float (&d)[4], uint32_t const (&a)[4], uint32_t const (&b)[2], int line) {
  MmaSlot s{d, a, b};
  exchange(ALL, &s, multiply<16, 16, bf16_value>, line);
}

void mma_m16n8k16_f16(float (&d)[4], uint32_t const (&a)[4], uint32_t const (&b)[2], int line) {
  MmaSlot s{d, a, b};
  exchange(ALL, &s, multiply<16, 16, f16_value>, line);
}

void mma_m16n8k8_bf16(float (&d)[4], uint32_t const (&a)[2], uint32_t const (&b)[1], int line) {
  MmaSlot s{d, a, b};
  exchange(ALL, &s, multiply<8, 16, bf16_value>, line);
}

void mma_m16n8k32_e4m3(float (&d)[4], uint32_t const (&a)[4], uint32_t const (&b)[2], int line) {
  MmaSlot s{d, a, b};
  exchange(ALL, &s, multiply<32, 8, e4m3_value>, line);
}

}  // namespace ds4::host
