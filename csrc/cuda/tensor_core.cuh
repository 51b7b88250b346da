// Matrix instructions of a whole warp (sm_80 and newer). All 32 lanes call them together. Fragments as the PTX ISA has
// them, with g = lane / 4 and t = lane % 4, two 16-bit elements in a register, the lower column first:
//   a of m16n8k16: (g, 2t), (g + 8, 2t), (g, 2t + 8), (g + 8, 2t + 8)      row, column of a register's first element
//   b of m16n8k16: (2t, g), (2t + 8, g)                                     its elements are one below the other
//   a of m16n8k8:  (g, t), (g + 8, t), (g, t + 4), (g + 8, t + 4);  b: (t, g), (t + 4, g)
//   d:             (g, 2t), (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1)
#pragma once

#include "cuda/platform.cuh"

#ifdef SNIPKERN_ON_HOST
#  include "cuda/host/tensor_core.h"
#endif

namespace snipkern::cuda {

// d += a b: a is 16 x 16, b 16 x 8, d 16 x 8 in float. The last argument only tells the type.
__device__ __forceinline__ void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], __half) {
#ifdef SNIPKERN_ON_HOST
  host::mma_m16n8k16(d, a, b, __half{});
#else
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

__device__ __forceinline__ void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                                             __nv_bfloat16) {
#ifdef SNIPKERN_ON_HOST
  host::mma_m16n8k16(d, a, b, __nv_bfloat16{});
#else
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

// d += a b: a is 16 x 8, b 8 x 8, d 16 x 8 in float. Operands are floats of which the low 13 bits are ignored: give
// them as to_tf32() rounds them.
__device__ __forceinline__ void mma_m16n8k8_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#ifdef SNIPKERN_ON_HOST
  host::mma_m16n8k8_tf32(d, a, b);
#else
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

// Rounds to nearest, ties away from zero, to the 10 bits of fraction that tensor cores multiply.
__device__ __forceinline__ uint32_t to_tf32(float value) {
#ifdef SNIPKERN_ON_HOST
  return host::to_tf32(value);
#else
  uint32_t result;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(result) : "f"(value));
  return result;
#endif
}

// Four matrices of 8 x 8 16-bit elements from shared memory, one register of each: lane 8 i + r gives the address of
// row r of matrix i (16 bytes, aligned), and lane 4 g + t receives the elements 2t and 2t + 1 of row g.
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&r)[4], const void* row) {
#ifdef SNIPKERN_ON_HOST
  host::ldmatrix(r, row, 4, false);
#else
  const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
#endif
}

// The same, transposed: lane 4 g + t receives the elements g of rows 2t and 2t + 1.
__device__ __forceinline__ void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row) {
#ifdef SNIPKERN_ON_HOST
  host::ldmatrix(r, row, 4, true);
#else
  const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
#endif
}

// Two matrices; the addresses of lanes 16 to 31 are not used.
__device__ __forceinline__ void ldmatrix_x2(uint32_t (&r)[2], const void* row) {
#ifdef SNIPKERN_ON_HOST
  host::ldmatrix(r, row, 2, false);
#else
  const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(address)
               : "memory");
#endif
}

__device__ __forceinline__ void ldmatrix_x2_trans(uint32_t (&r)[2], const void* row) {
#ifdef SNIPKERN_ON_HOST
  host::ldmatrix(r, row, 2, true);
#else
  const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(address)
               : "memory");
#endif
}

}  // namespace snipkern::cuda
