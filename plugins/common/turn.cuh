// cos and sin of position·frequency, to one unit in the last place of float32, without the local memory that sinf takes.
#pragma once

namespace ds4 {

struct Turn {
  float cos, sin;
};

// The angle is a float32 product, as the released code has it (up to 10^6); what is left of it after quarter turns
// is exact to 10^-10 in float64.
__device__ inline Turn turn_from(int position, float frequency) {
  constexpr double QUARTER = 1.5707963267948966;
  double const angle = static_cast<double>(__fmul_rn(static_cast<float>(position), frequency));
  double const quarters = rint(angle * (1 / QUARTER));
  auto const r = static_cast<float>(fma(-quarters, QUARTER, angle));
  float const r2 = r * r;
  float const sin = r + r * r2 * (-1.6666654611e-1f + r2 * (8.3321608736e-3f + r2 * -1.9515295891e-4f));
  float const cos = 1.0f - 0.5f * r2 + r2 * r2 * (4.166664568298827e-2f + r2 * (-1.388731625493765e-3f + r2 * 2.443315711809948e-5f));
  int const quadrant = static_cast<int>(static_cast<long long>(quarters) & 3);
  float const x = quadrant & 1 ? sin : cos, y = quadrant & 1 ? cos : sin;
  return {quadrant == 1 || quadrant == 2 ? -x : x, quadrant >= 2 ? -y : y};
}

}  // namespace ds4
