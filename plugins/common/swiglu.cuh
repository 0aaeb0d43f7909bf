// silu(min(gate, limit)) · clamp(up, ±limit), float32; reference: swiglu in ds4export/ops/_numerics.py
#pragma once

namespace ds4 {

// NaN stays NaN, which fminf and fmaxf would hide.
__device__ inline float swiglu(float gate, float up, float limit) {
  gate = gate > limit ? limit : gate;
  up = up > limit ? limit : up < -limit ? -limit : up;
  return gate * (1.0f / (1.0f + expf(-gate))) * up;
}

}  // namespace ds4
