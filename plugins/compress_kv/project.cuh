// project: x·wkv^T and x·wgate^T + ape of the new tokens -> their rows u ++ s, float32. See compress_kv.cuh.
#pragma once
#include "common/linear.cuh"
#include "compress_kv/compress_kv.cuh"

namespace ds4::compress_kv {

using ProjectTile = LinearTile<PlainLinear<Bf16Weight, float, false>>;

// Tokens are counted through the batch, [B·T]; matrix 0 makes u, matrix 1 s.
struct Projection {
  uint8_t const* wkv;
  uint8_t const* wgate;
  bf16 const* x;
  float const* ape;
  Rows rows;
  int64_t num_tokens;
  int width, hidden, ratio;  // rows and columns of a matrix, rows of ape

  __device__ Matrix matrix(int which) const { return {which ? wgate : wkv, nullptr, width, hidden, 0}; }
  // Padding is no token: whatever it holds is not read.
  __device__ bool is_new(int64_t token) const {
    return token < num_tokens && token % rows.num_tokens < rows.num_new[token / rows.num_tokens];
  }
  __device__ bf16 const* token(int64_t i) const { return is_new(i) ? x + i * hidden : nullptr; }
  __device__ void put(int64_t token, int which, int channel, float value) const {
    if (!is_new(token)) return;
    Sequence const own = rows.sequence(token / rows.num_tokens);
    int const at = own.position + static_cast<int>(token % rows.num_tokens);
    own.row(at)[which * width + channel] = which ? value + ape[int64_t{at % ratio} * width + channel] : value;
  }
};

// Grid: rows / 16 x tokens / 8·NT x 2 matrices.
template <int NT, bool aligned>
__global__ void __launch_bounds__(STREAM_THREADS, 1) project_few(Projection const a) {
  __shared__ StreamSums<1, NT> sums;
  int const which = static_cast<int>(blockIdx.z);
  int64_t const first = int64_t{blockIdx.y} * (STREAM_TOKENS * NT);
  Matrix const matrix[1] = {a.matrix(which)};
  stream_rows<Bf16Weight, 1, NT, aligned, aligned>(
      matrix, static_cast<int>(blockIdx.x) * STREAM_ROWS, a.hidden, sums, [] {}, [&](int i) { return a.token(first + i); },
      [&](int row, int i, float const(&value)[1]) { a.put(first + i, which, row, value[0]); });
}

// Grid: rows / 128 x tokens / 128 x 2 matrices.
__global__ void __launch_bounds__(TILE_THREADS, 1) project_many(Projection const a) {
  extern __shared__ __align__(16) unsigned char raw[];
  int const which = static_cast<int>(blockIdx.z);
  int64_t const first = int64_t{blockIdx.y} * ProjectTile::TOKENS;
  Matrix const matrix[1] = {a.matrix(which)};
  ProjectTile tile(*reinterpret_cast<ProjectTile::Shared*>(raw), matrix, static_cast<int>(blockIdx.x) * ProjectTile::ROWS_PER_MATRIX, a.hidden);
  tile.run([&](int i) { return a.token(first + i); });
  tile.finish([&](int row, int i, float const(&value)[1]) { a.put(first + i, which, row, value[0]); });
}

}  // namespace ds4::compress_kv
