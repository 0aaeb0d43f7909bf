// A row of up to 512 bf16 in the registers of a warp, read once and written once:
//
//   columns  | lane 0: 0..7 | lane 1: 8..15 | ... | lane 31: 248..255 | lane 0: 256..263 | ...      16 bytes a lane and access
//
// Columns beyond the row are zeros, which change neither a sum of squares nor a largest value, and are not written.
#pragma once
#include "common/a8_64.cuh"
#include "common/rope.cuh"
#include "common/vector.cuh"

namespace ds4 {

struct WarpRow {
  static constexpr int PER_LANE = 8, PARTS = 2, MOST_COLUMNS = PARTS * LANES * PER_LANE;
  static constexpr int MOST_FREQS = MOST_COLUMNS / 2;  // if every dim is roped
  float value[PARTS][PER_LANE];

  // Of this lane's first value in a part.
  __device__ static int column(int part) { return (part * LANES + static_cast<int>(threadIdx.x) % LANES) * PER_LANE; }

  // `aligned`: the row begins at 16 bytes and is a multiple of eight long.
  template <bool aligned>
  __device__ void load_from(bf16 const* row, int width) {
#pragma unroll
    for (int i = 0; i < PARTS; ++i) {
      Pack<bf16, PER_LANE> pack = {};
      if constexpr (aligned) {
        if (column(i) < width) pack = load<PER_LANE>(row + column(i));
      } else {
#pragma unroll
        for (int k = 0; k < PER_LANE; ++k) {
          if (column(i) + k < width) pack.value[k] = row[column(i) + k];
        }
      }
#pragma unroll
      for (int k = 0; k < PER_LANE; ++k) value[i][k] = float_from(pack.value[k]);
    }
  }

  template <bool aligned>
  __device__ void store_to(bf16* row, int width) const {
#pragma unroll
    for (int i = 0; i < PARTS; ++i) {
      Pack<bf16, PER_LANE> pack;
#pragma unroll
      for (int k = 0; k < PER_LANE; ++k) pack.value[k] = bf16_from(value[i][k]);
      if constexpr (aligned) {
        if (column(i) < width) store<PER_LANE>(row + column(i), pack);
      } else {
#pragma unroll
        for (int k = 0; k < PER_LANE; ++k) {
          if (column(i) + k < width) row[column(i) + k] = pack.value[k];
        }
      }
    }
  }

  // The sum of f(value) over the row, in every lane.
  template <class F>
  __device__ float sum(F f) const {
    float total = 0;
#pragma unroll
    for (int i = 0; i < PARTS * PER_LANE; ++i) total += f(value[i / PER_LANE][i % PER_LANE]);
    return warp_sum(total);
  }

  // value = f(value), column by column.
  template <class F>
  __device__ void map(F f) {
#pragma unroll
    for (int i = 0; i < PARTS * PER_LANE; ++i) value[i / PER_LANE][i % PER_LANE] = f(value[i / PER_LANE][i % PER_LANE]);
  }

  // value = bf16(rms(value, norm))
  template <bool aligned>
  __device__ void norm_by(bf16 const* norm, int width, float eps) {
    float const factor = 1.0f / sqrtf(sum([](float v) { return v * v; }) / static_cast<float>(width) + eps);
    WarpRow gain;
    gain.load_from<aligned>(norm, width);
#pragma unroll
    for (int i = 0; i < PARTS * PER_LANE; ++i) {
      float& v = value[i / PER_LANE][i % PER_LANE];
      v = rounded(v * factor * gain.value[i / PER_LANE][i % PER_LANE]);
    }
  }

  // The last 2·num_freqs of `width` dims; `width` is even.
  __device__ void rotate_by(Turn const* turns, int width, int num_freqs) {
#pragma unroll
    for (int i = 0; i < PARTS; ++i) rotate(value[i], column(i) - (width - 2 * num_freqs), turns, num_freqs);
  }

  // A8(64) of the first `num` dims.
  __device__ void a8_64(int num) {
#pragma unroll
    for (int i = 0; i < PARTS; ++i) a8_64_round_trip(value[i], num - column(i));
  }
};

}  // namespace ds4
