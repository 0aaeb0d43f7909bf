// The small number formats in integer arithmetic: bf16, f16, e4m3, e2m1, and rounding to nearest even.
//
// Written from the formats' definitions, not with the compiler's or CUDA's conversions, and tested against a third
// implementation (tests/ptxhost/test_opcodes.py).
#pragma once
#include <bit>
#include <cmath>
#include <cstdint>

namespace ds4::host {

// A binary format of at most 16 bits with subnormals.
struct Format {
  int exponent_bits, mantissa_bits;
  bool has_infinity;  // else the largest code is NaN (e4m3) or a number (e2m1)
  bool has_nan;
  constexpr int bias() const { return (1 << (exponent_bits - 1)) - 1; }
  constexpr uint32_t sign() const { return 1u << (exponent_bits + mantissa_bits); }
  constexpr uint32_t infinity() const { return ((1u << exponent_bits) - 1) << mantissa_bits; }
  constexpr uint32_t nan() const { return sign() - 1; }
  constexpr uint32_t largest() const { return has_infinity ? infinity() - 1 : has_nan ? nan() - 1 : nan(); }
};

inline constexpr Format BF16{8, 7, true, true}, F16{5, 10, true, true}, E4M3{4, 3, false, true},
    E5M2{5, 2, true, true}, E2M1{2, 1, false, false};

inline double decode(Format f, uint32_t code) {
  uint32_t const magnitude = code & (f.sign() - 1);
  double const sign = code & f.sign() ? -1.0 : 1.0;
  if (f.has_infinity && magnitude >= f.infinity()) return magnitude == f.infinity() ? sign * INFINITY : NAN;
  if (!f.has_infinity && f.has_nan && magnitude == f.nan()) return NAN;
  int const exponent = static_cast<int>(magnitude >> f.mantissa_bits);
  double const fraction = magnitude & ((1u << f.mantissa_bits) - 1);
  double const one = 1u << f.mantissa_bits;
  return sign * (exponent ? std::ldexp(one + fraction, exponent - f.bias() - f.mantissa_bits)
                          : std::ldexp(fraction, 1 - f.bias() - f.mantissa_bits));
}

// Round a double to nearest, ties to even. `saturate`: beyond the range becomes the largest number.
inline uint32_t encode(Format f, double value, bool saturate) {
  uint32_t const sign = std::signbit(value) ? f.sign() : 0;
  if (std::isnan(value)) return f.has_nan ? f.nan() : f.largest();
  double const magnitude = std::fabs(value);
  int exponent = 0;
  std::frexp(magnitude, &exponent);
  int const step = std::max(exponent - 1, 1 - f.bias()) - f.mantissa_bits;  // log2 of the spacing
  double const units = std::isinf(magnitude) ? magnitude : std::nearbyint(std::ldexp(magnitude, -step));
  double const rounded = std::ldexp(units, step);
  if (rounded > decode(f, f.largest())) return sign | (saturate ? f.largest() : f.has_infinity ? f.infinity() : f.nan());
  if (rounded == 0) return sign;
  std::frexp(rounded, &exponent);
  if (exponent - 1 < 1 - f.bias()) return sign | static_cast<uint32_t>(std::ldexp(rounded, f.bias() - 1 + f.mantissa_bits));
  double const fraction = std::ldexp(rounded, f.mantissa_bits - (exponent - 1)) - (1u << f.mantissa_bits);
  return sign | static_cast<uint32_t>(exponent - 1 + f.bias()) << f.mantissa_bits | static_cast<uint32_t>(fraction);
}

// a + b rounded to odd: a later rounding to a shorter format is then the only one.
inline double sum_to_odd(double a, double b) {
  double const sum = a + b, back = sum - a, lost = (a - (sum - back)) + (b - back);
  if (!std::isfinite(sum) || lost == 0 || (std::bit_cast<uint64_t>(sum) & 1)) return sum;
  return std::nextafter(sum, lost > 0 ? INFINITY : -INFINITY);
}

// The two formats of the hot paths, without a double.
inline float float_from_bf16(uint16_t code) { return std::bit_cast<float>(uint32_t{code} << 16); }

inline uint16_t bf16_from_float(float value) {
  auto const bits = std::bit_cast<uint32_t>(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fff;
  return static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
}

}  // namespace ds4::host
