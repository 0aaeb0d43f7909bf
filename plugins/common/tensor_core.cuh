// What a warp needs for a matrix product on sm_80 and later: asynchronous copies, ldmatrix, mma, and the swizzle of rows.
#pragma once
#include <cuda_bf16.h>

#include <cstdint>

namespace ds4 {

// Whether products of e4m3 go to the tensor cores as e4m3: on sm_89 and sm_12x. nvcc compiles the same mma for sm_90 and sm_100 to
// unpacked f16 and two HMMA (docs/log.md), where bf16 is the better form. Host code, which knows no architecture, must not ask.
#if defined(__CUDA_ARCH__) && ((__CUDA_ARCH__ >= 890 && __CUDA_ARCH__ < 900) || __CUDA_ARCH__ >= 1200)
constexpr bool E4M3_MMA = true;
#else
constexpr bool E4M3_MMA = false;
#endif

constexpr int PIECE = 8;  // bf16 values that one copy moves: 16 bytes

// Rows of a multiple of 8 pieces keep piece p of row r at p ^ (r mod 8): the 8 rows of an ldmatrix meet no bank twice.
__device__ constexpr int swizzled(int row, int piece) { return piece ^ (row & 7); }

__device__ inline uint32_t shared_address(void const* p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }

// 16 bytes, or zeros where not `exists`; `from` must be an address that is valid either way.
__device__ inline void copy_piece(void* to, void const* from, bool exists) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(exists ? 16 : 0)
               : "memory");
}
// As copy_piece(), of fewer bytes, where rows are no multiples of 16.
template <int num_bytes>
__device__ inline void copy_bytes(void* to, void const* from, bool exists) {
  static_assert(num_bytes == 4 || num_bytes == 8);
  asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(shared_address(to)), "l"(from), "n"(num_bytes),
               "r"(exists ? num_bytes : 0)
               : "memory");
}
__device__ inline void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int num_groups_left>
__device__ inline void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(num_groups_left) : "memory");
}

// Four 8x8 matrices; lane 8·i + r brings the address of row r of matrix i.
__device__ inline void load_matrices(uint32_t (&m)[4], void const* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3])
               : "r"(shared_address(row))
               : "memory");
}
__device__ inline void load_matrices_transposed(uint32_t (&m)[4], void const* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3])
               : "r"(shared_address(row))
               : "memory");
}

// d += a·b, 16x16 times 16x8. Of d, a lane holds rows lane/4 and lane/4 + 8, columns 2·(lane%4) and the next.
__device__ inline void multiply_add(float (&d)[4], uint32_t const (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// The same 16x32 times 32x8 of e4m3 codes, four to a register: of a row of a, and of a column of b, a lane holds 4·(lane%4) on of
// either half of the 32.
__device__ inline void multiply_add_e4m3(float (&d)[4], uint32_t const (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile("mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

}  // namespace ds4
