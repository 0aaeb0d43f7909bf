// The five launches of a call, one definition for either format of the weights; they compile apart.
#pragma once
#include "common/grid.h"
#include "moe/moe.cuh"

namespace ds4::moe {

Status launch_fp4(Call const& c, bf16 const* x, float* partial, bool streamed, cudaStream_t stream);
Status launch_fp8(Call const& c, bf16 const* x, float* partial, bool streamed, cudaStream_t stream);

template <class Half, class W>
Status launch_half(Call const& c, bool streamed, int rows, cudaStream_t stream) {
  auto const num_tiles = static_cast<unsigned>(c.num_tiles);
  if (streamed) {
    dim3 const grid(static_cast<unsigned>((rows + STREAM_ROWS - 1) / STREAM_ROWS), num_tiles);
    c.fields([&](auto... field) { stream_experts<Half, W><<<grid, STREAM_THREADS, 0, stream>>>(field...); });
    return launched();
  }
  using Product = ExpertTile<Half, W>;
  constexpr int shared_bytes = Product::SHARED_BYTES;
  cudaError_t code = cudaSuccess;
  dim3 const grid(static_cast<unsigned>((rows + Product::ROWS_PER_MATRIX - 1) / Product::ROWS_PER_MATRIX), num_tiles);
  c.fields([&]<class... Fields>(Fields... field) {
    auto* const kernel = tile_experts<Half, W, Fields...>;
    code = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
    if (code == cudaSuccess) kernel<<<grid, TILE_THREADS, shared_bytes, stream>>>(field...);
  });
  DS4_REQUIRE(code == cudaSuccess, "%d bytes of shared memory: %s", shared_bytes, cudaGetErrorString(code));
  return launched();
}

template <class W>
Status launch_all(Call const& c, bf16 const* x, float* partial, bool streamed, cudaStream_t stream) {
  int64_t const x_warps = int64_t{c.num_tokens} * (c.hidden_padded / A8_BLOCK);
  auto const list_blocks = static_cast<unsigned>((c.num_experts + PREPARE_WARPS - 1) / PREPARE_WARPS);
  unsigned const num_blocks = list_blocks + blocks_for(x_warps, PREPARE_WARPS);
  c.fields([&](auto... field) { prepare<W><<<num_blocks, PREPARE_THREADS, 0, stream>>>(x, field...); });
  if (Status status = launched(); !status.ok()) return status;
  if (Status status = launch_half<Up, W>(c, streamed, c.inner, stream); !status.ok()) return status;
  int64_t const h_warps = int64_t{c.num_pairs} * (c.inner_padded / A8_BLOCK);
  unsigned const h_blocks = blocks_for(h_warps, QUANTISE_THREADS / LANES);
  c.fields([&](auto... field) { requantise<W><<<h_blocks, QUANTISE_THREADS, 0, stream>>>(field...); });
  if (Status status = launched(); !status.ok()) return status;
  if (Status status = launch_half<Down, W>(c, streamed, c.hidden, stream); !status.ok()) return status;
  dim3 const grid(static_cast<unsigned>(c.num_tokens), static_cast<unsigned>((c.hidden + COMBINE_THREADS - 1) / COMBINE_THREADS));
  c.fields([&](auto... field) { combine<<<grid, COMBINE_THREADS, 0, stream>>>(partial, field...); });
  return launched();
}

}  // namespace ds4::moe
