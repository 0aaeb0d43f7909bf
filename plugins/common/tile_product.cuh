// Many tokens times weight rows, in tiles of shared memory: the form that the architecture is good at.
//
//   activations as bf16 or weights as bf16      tile_bf16.cuh
//   both quantised, E4M3_MMA                    tile_e4m3.cuh; the quantiser (a8.cuh) leaves activations as this form reads them
#pragma once
#include <algorithm>
#include <type_traits>

#include "common/tile_bf16.cuh"
#include "common/tile_e4m3.cuh"

namespace ds4 {

// `Here` is what device code uses. The host knows only the sizes that both forms share, and asks for the larger one's memory: it
// cannot tell which machine code the driver will choose.
template <class W, int MATRICES, int NT, int BF16_STAGES, bool quantised>
struct TileProduct {
  using Bf16 = Bf16Tile<W, MATRICES, NT, BF16_STAGES>;
  using E4m3 = E4m3Tile<W, MATRICES, NT>;
  using Here = std::conditional_t<E4M3_MMA, E4m3, Bf16>;
  static constexpr int TOKENS = Bf16::TOKENS, ROWS_PER_MATRIX = Bf16::ROWS_PER_MATRIX;
  static constexpr int SHARED_BYTES = std::max<int>(sizeof(typename Bf16::Shared), sizeof(typename E4m3::Shared));
};

template <class W, int MATRICES, int NT, int STAGES>
struct TileProduct<W, MATRICES, NT, STAGES, false> : Bf16Tile<W, MATRICES, NT, STAGES> {
  using Here = Bf16Tile<W, MATRICES, NT, STAGES>;
  using Here::Here;
  static constexpr int SHARED_BYTES = sizeof(typename Here::Shared);
};

}  // namespace ds4
