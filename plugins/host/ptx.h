// What each PTX instruction computes; included by every translated kernel.
//
// Registers are bits: `in<float>(r)` reads them as a type, `reg<R>(value)` makes them, so that it does not matter
// which type a compiler declared a register with. Transcendental approximations are rounded correctly here; a GPU's
// differ in the last bits (PTX manual, ex2.approx and others). Tested opcode by opcode in tests/ptxhost.
#pragma once
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include "block.h"
#include "formats.h"
#include "kernel_table.h"
#include "sanitizers.h"
#include "warp.h"

namespace ds4::host {

template <class T>
using Bits = std::conditional_t<sizeof(T) == 1, uint8_t,
             std::conditional_t<sizeof(T) == 2, uint16_t, std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>>>;

template <class T, class R>
inline T in(R reg) {
  if constexpr (std::is_same_v<T, bool>) return reg;
  else return std::bit_cast<T>(static_cast<Bits<T>>(std::bit_cast<Bits<R>>(reg)));
}

// A wider register takes a signed value sign-extended, every other one zero-extended.
template <class R, class T>
inline R reg(T value) {
  if constexpr (std::is_same_v<R, bool>) return value;
  else if constexpr (std::is_signed_v<T> && std::is_integral_v<T>) return static_cast<R>(static_cast<std::make_signed_t<R>>(value));
  else return static_cast<R>(std::bit_cast<Bits<T>>(value));
}

// Memory. `num` elements move together and are aligned together.
template <class T, int num, class P>
inline T* checked(P address, int line) {
  auto const at = reinterpret_cast<uintptr_t>(address);
  if (at % (sizeof(T) * num)) fault(line, "address of %zu bytes is misaligned: ends in %#zx", sizeof(T) * num, at % 256);
  return reinterpret_cast<T*>(at);
}
template <class T, int num = 1>
inline T const* from(uint64_t address, int line = __builtin_LINE()) { return checked<T const, num>(reinterpret_cast<T*>(address), line); }
template <class T, int num = 1>
inline T* to(uint64_t address, int line = __builtin_LINE()) { return checked<T, num>(reinterpret_cast<T*>(address), line); }

inline uint64_t shared_address(uint32_t offset) { return reinterpret_cast<uint64_t>(block.shared) + offset; }
inline uint64_t shared_offset(uint64_t address) { return address - reinterpret_cast<uint64_t>(block.shared); }
template <class T>
inline T parameter(int index, int offset) {
  T value;
  std::memcpy(&value, static_cast<char const*>(block.arguments[index]) + offset, sizeof(T));
  return value;
}

// Integers wrap; 16 bits must not overflow in int.
template <class T> using Wide = std::conditional_t<sizeof(T) == 8, uint64_t, uint32_t>;
template <class T> inline T add(T a, T b) { return static_cast<T>(Wide<T>(a) + Wide<T>(b)); }
template <class T> inline T sub(T a, T b) { return static_cast<T>(Wide<T>(a) - Wide<T>(b)); }
template <class T> inline T mul_lo(T a, T b) { return static_cast<T>(Wide<T>(a) * Wide<T>(b)); }
template <class T> inline T mad_lo(T a, T b, T c) { return add<T>(mul_lo<T>(a, b), c); }
template <class T> inline T neg(T a) { return sub<T>(0, a); }
template <class T> inline T absolute(T a) { return a < 0 ? neg<T>(a) : a; }
template <class T> struct Doubled;
template <> struct Doubled<int16_t> { using type = int32_t; };
template <> struct Doubled<uint16_t> { using type = uint32_t; };
template <> struct Doubled<int32_t> { using type = int64_t; };
template <> struct Doubled<uint32_t> { using type = uint64_t; };
template <> struct Doubled<int64_t> { using type = __int128; };
template <> struct Doubled<uint64_t> { using type = unsigned __int128; };
template <class T> using Double = typename Doubled<T>::type;
template <class T> inline Double<T> mul_wide(T a, T b) { return static_cast<Double<T>>(a) * static_cast<Double<T>>(b); }
template <class T> inline Double<T> mad_wide(T a, T b, Double<T> c) { return add<Double<T>>(mul_wide<T>(a, b), c); }
template <class T> inline T mul_hi(T a, T b) { return static_cast<T>(mul_wide<T>(a, b) >> (8 * sizeof(T))); }
template <class T> inline T mad_hi(T a, T b, T c) { return add<T>(mul_hi<T>(a, b), c); }
template <class T> inline T quotient(T a, T b) {
  if (b == 0) return static_cast<T>(~T{0});  // what GPUs return; the manual leaves it open
  if (std::is_signed_v<T> && b == static_cast<T>(-1)) return neg<T>(a);
  return static_cast<T>(a / b);
}
template <class T> inline T remainder_of(T a, T b) {
  if (b == 0) return a;
  if (std::is_signed_v<T> && b == static_cast<T>(-1)) return 0;
  return static_cast<T>(a % b);
}
template <class T> inline T smaller(T a, T b) {
  if constexpr (std::is_floating_point_v<T>) return a == 0 && b == 0 ? (std::signbit(a) ? a : b) : std::fmin(a, b);
  else return std::min(a, b);
}
template <class T> inline T larger(T a, T b) {
  if constexpr (std::is_floating_point_v<T>) return a == 0 && b == 0 ? (std::signbit(a) ? b : a) : std::fmax(a, b);
  else return std::max(a, b);
}
template <class T> inline T shift_left(T a, uint32_t n) { return n >= 8 * sizeof(T) ? T{0} : static_cast<T>(Wide<T>(a) << n); }
template <class T> inline T shift_right(T a, uint32_t n) {
  uint32_t const most = 8 * sizeof(T) - 1;
  return n > most && std::is_unsigned_v<T> ? T{0} : static_cast<T>(a >> std::min(n, most));
}
inline uint32_t funnel_left(uint32_t low, uint32_t high, uint32_t n) {
  return static_cast<uint32_t>((uint64_t{high} << 32 | low) << n >> 32);
}
inline uint32_t funnel_right(uint32_t low, uint32_t high, uint32_t n) { return static_cast<uint32_t>((uint64_t{high} << 32 | low) >> n); }
template <class T> inline uint32_t popcount(T a) { return static_cast<uint32_t>(std::popcount(a)); }
template <class T> inline uint32_t leading_zeros(T a) { return static_cast<uint32_t>(std::countl_zero(a)); }
template <class T> inline T reversed(T a) {
  T out = 0;
  for (unsigned i = 0; i < 8 * sizeof(T); ++i) out = static_cast<T>(out | ((a >> i & 1) << (8 * sizeof(T) - 1 - i)));
  return out;
}
template <class T> inline uint32_t leading_one(T a) {  // bfind: of signed values, the first bit that differs from the sign
  using U = std::make_unsigned_t<T>;
  U const u = a < 0 ? static_cast<U>(~static_cast<U>(a)) : static_cast<U>(a);
  return u ? 8 * sizeof(T) - 1 - static_cast<uint32_t>(std::countl_zero(u)) : ~0u;
}
template <class T> inline T extract_field(T a, uint32_t at, uint32_t length) {
  using U = std::make_unsigned_t<T>;
  at &= 255;
  length &= 255;
  uint32_t const width = 8 * sizeof(T);
  if (!length) return 0;
  U const sign = std::is_signed_v<T> ? static_cast<U>(a) >> std::min(at + length - 1, width - 1) & 1 : 0;
  U out = sign ? static_cast<U>(~U{0}) : U{0};
  for (uint32_t i = 0; i < length && i < width && at + i < width; ++i) {
    out = static_cast<U>((out & ~(U{1} << i)) | ((static_cast<U>(a) >> (at + i) & 1) << i));
  }
  return static_cast<T>(out);
}
template <class T> inline T insert_field(T a, T b, uint32_t at, uint32_t length) {
  at &= 255;
  length &= 255;
  uint32_t const width = 8 * sizeof(T);
  if (!length || at >= width) return b;
  T const ones = length >= width ? static_cast<T>(~T{0}) : static_cast<T>((T{1} << length) - 1);
  T const mask = static_cast<T>(ones << at);
  return static_cast<T>((a << at & mask) | (b & static_cast<T>(~mask)));
}
inline uint32_t permute(uint32_t a, uint32_t b, uint32_t selector) {
  uint64_t const bytes = uint64_t{b} << 32 | a;
  uint32_t out = 0;
  for (int i = 0; i < 4; ++i) {
    uint32_t const choice = selector >> (4 * i) & 15;
    auto byte = static_cast<uint32_t>(bytes >> (8 * (choice & 7)) & 255);
    if (choice & 8) byte = byte & 128 ? 255 : 0;  // the sign, replicated
    out |= byte << (8 * i);
  }
  return out;
}
inline uint32_t logic3(uint32_t a, uint32_t b, uint32_t c, uint32_t table) {
  uint32_t out = 0;
  for (uint32_t k = 0; k < 8; ++k) {
    if (table >> k & 1) out |= (k & 4 ? a : ~a) & (k & 2 ? b : ~b) & (k & 1 ? c : ~c);
  }
  return out;
}
inline int32_t dot4_signed(uint32_t a, uint32_t b, int32_t c) {
  for (int i = 0; i < 4; ++i) c += static_cast<int8_t>(a >> (8 * i)) * static_cast<int8_t>(b >> (8 * i));
  return c;
}

// Floats. `flushed`: the .ftz of an instruction, subnormals in and out become zeros of their sign.
inline float flushed(float a) { return std::fpclassify(a) == FP_SUBNORMAL ? std::copysign(0.0f, a) : a; }
// A double (a sum to odd, or exact) to float32 in a directed rounding.
enum class Directed { ZERO, DOWN, UP };
template <Directed mode> inline float directed(double value) {
  float const nearest = static_cast<float>(value);
  double const back = static_cast<double>(nearest);
  bool const down = mode == Directed::DOWN || (mode == Directed::ZERO && value > 0);
  if (down && back > value) return std::nextafter(nearest, -INFINITY);
  if (!down && back < value) return std::nextafter(nearest, INFINITY);
  return nearest;
}
template <Directed mode> inline float add_directed(float a, float b) { return directed<mode>(sum_to_odd(double{a}, double{b})); }
template <Directed mode> inline float mul_directed(float a, float b) { return directed<mode>(double{a} * double{b}); }
template <Directed mode> inline float fma_directed(float a, float b, float c) { return directed<mode>(sum_to_odd(double{a} * double{b}, double{c})); }
inline float saturated(float a) { return a >= 0 ? std::min(a, 1.0f) : 0.0f; }
inline float exp2_approx(float a) { return static_cast<float>(std::exp2(static_cast<double>(a))); }
inline float log2_approx(float a) { return static_cast<float>(std::log2(static_cast<double>(a))); }
inline float reciprocal_sqrt(float a) { return static_cast<float>(1.0 / std::sqrt(static_cast<double>(a))); }
inline float sine(float a) { return static_cast<float>(std::sin(static_cast<double>(a))); }
inline float cosine(float a) { return static_cast<float>(std::cos(static_cast<double>(a))); }
inline float tangent_h(float a) { return static_cast<float>(std::tanh(static_cast<double>(a))); }
inline float quotient_full(float a, float b) { return a / b; }
template <class T> inline bool unordered(T a, T b) { return std::isnan(a) || std::isnan(b); }
inline bool is_finite(float a) { return std::isfinite(a); }

// Half-size floats: two exact products and a sum to odd, so one rounding.
template <Format const& f> inline uint16_t half_add(uint16_t a, uint16_t b) { return static_cast<uint16_t>(encode(f, sum_to_odd(decode(f, a), decode(f, b)), false)); }
template <Format const& f> inline uint16_t half_sub(uint16_t a, uint16_t b) { return static_cast<uint16_t>(encode(f, sum_to_odd(decode(f, a), -decode(f, b)), false)); }
template <Format const& f> inline uint16_t half_mul(uint16_t a, uint16_t b) { return static_cast<uint16_t>(encode(f, decode(f, a) * decode(f, b), false)); }
template <Format const& f> inline uint16_t half_fma(uint16_t a, uint16_t b, uint16_t c) {
  return static_cast<uint16_t>(encode(f, sum_to_odd(decode(f, a) * decode(f, b), decode(f, c)), false));
}
template <Format const& f> inline uint16_t half_max(uint16_t a, uint16_t b) {
  return static_cast<uint16_t>(encode(f, larger(decode(f, a), decode(f, b)), false));
}
template <Format const& f> inline uint16_t half_min(uint16_t a, uint16_t b) {
  return static_cast<uint16_t>(encode(f, smaller(decode(f, a), decode(f, b)), false));
}
template <auto operation, class... A> inline uint32_t pairwise(A... a) {
  return static_cast<uint32_t>(operation(static_cast<uint16_t>(a)...)) |
         static_cast<uint32_t>(operation(static_cast<uint16_t>(a >> 16)...)) << 16;
}

// Conversions. The first source of a packed conversion goes to the upper half.
inline uint16_t half_from_float(float a) { return static_cast<uint16_t>(encode(F16, static_cast<double>(a), false)); }
inline float float_from_half(uint16_t a) { return static_cast<float>(decode(F16, a)); }
inline uint32_t bf16x2_from_floats(float high, float low) { return uint32_t{bf16_from_float(high)} << 16 | bf16_from_float(low); }
inline uint32_t halves_from_floats(float high, float low) { return uint32_t{half_from_float(high)} << 16 | half_from_float(low); }
template <Format const& f> inline uint16_t bytes_from_floats(float high, float low) {
  return static_cast<uint16_t>(encode(f, static_cast<double>(high), true) << 8 | encode(f, static_cast<double>(low), true));
}
template <Format const& f> inline uint32_t halves_from_bytes(uint16_t pair) {
  return uint32_t(encode(F16, decode(f, pair >> 8), false)) << 16 | uint32_t(encode(F16, decode(f, pair & 255), false));
}
inline uint32_t halves_from_e2m1(uint8_t pair) {
  return uint32_t(encode(F16, decode(E2M1, pair >> 4), false)) << 16 | uint32_t(encode(F16, decode(E2M1, pair & 15), false));
}
inline uint8_t e2m1_from_floats(float high, float low) {
  return static_cast<uint8_t>(encode(E2M1, static_cast<double>(high), true) << 4 | encode(E2M1, static_cast<double>(low), true));
}
enum class Rounding { ZERO, NEAREST, DOWN, UP };
template <class T, Rounding mode, class F> inline T integer_from_float(F a) {  // saturates; NaN becomes 0 (of 64 bits: the top bit)
  if (std::isnan(a)) return sizeof(T) == 8 ? static_cast<T>(uint64_t{1} << 63) : T{0};
  double const d = static_cast<double>(a);
  double const r = mode == Rounding::ZERO ? std::trunc(d) : mode == Rounding::NEAREST ? std::nearbyint(d)
                   : mode == Rounding::DOWN ? std::floor(d) : std::ceil(d);
  constexpr double low = static_cast<double>(std::numeric_limits<T>::min());
  constexpr double high = static_cast<double>(std::numeric_limits<T>::max());
  return r <= low ? std::numeric_limits<T>::min() : r >= high ? std::numeric_limits<T>::max() : static_cast<T>(r);
}
template <class T, class S> inline T saturated_integer(S a) {
  return static_cast<T>(std::clamp<__int128>(a, std::numeric_limits<T>::min(), std::numeric_limits<T>::max()));
}

// Atomics are relaxed: they order nothing else.
template <class T> inline T atomic_exchange(T* at, T value) { T old; __atomic_exchange(at, &value, &old, __ATOMIC_RELAXED); return old; }
template <class T> inline T atomic_compare(T* at, T expected, T value) {
  __atomic_compare_exchange(at, &expected, &value, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
  return expected;
}
template <class T, class F> inline T atomic_update(T* at, T value, F change) {
  using U = Bits<T>;
  auto* const bits = reinterpret_cast<U*>(at);
  U old = __atomic_load_n(bits, __ATOMIC_RELAXED);
  while (!__atomic_compare_exchange_n(bits, &old, std::bit_cast<U>(static_cast<T>(change(std::bit_cast<T>(old), value))), false,
                                      __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
  }
  return std::bit_cast<T>(old);
}
template <class T> inline T atomic_add(T* at, T v) { return atomic_update(at, v, [](T a, T b) { if constexpr (std::is_floating_point_v<T>) return a + b; else return add<T>(a, b); }); }
template <class T> inline T atomic_min(T* at, T v) { return atomic_update(at, v, smaller<T>); }
template <class T> inline T atomic_max(T* at, T v) { return atomic_update(at, v, larger<T>); }
template <class T> inline T atomic_and(T* at, T v) { return atomic_update(at, v, [](T a, T b) { return static_cast<T>(a & b); }); }
template <class T> inline T atomic_or(T* at, T v) { return atomic_update(at, v, [](T a, T b) { return static_cast<T>(a | b); }); }
template <class T> inline T atomic_xor(T* at, T v) { return atomic_update(at, v, [](T a, T b) { return static_cast<T>(a ^ b); }); }

}  // namespace ds4::host
