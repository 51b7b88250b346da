// CUDA C++'s keywords, vector types and built-in variables for a C++ compiler. Code written against this header
// compiles with nvcc too: it offers nothing that CUDA has not.
#pragma once

#include <cstddef>
#include <cstdint>

#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))

// A block runs whole on one thread of the operating system, so what that thread owns is the block's. The memory is
// filled with NaN before each block (launch.h). AddressSanitizer guards static arrays but not those of threads.
#ifdef SNIPKERN_HOST_ASAN
#  define __shared__ static
#else
#  define __shared__ static thread_local
#endif

struct uint3 {
  unsigned x, y, z;
};

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

#define SNIPKERN_VECTOR_TYPES(T, name)                                          \
  struct alignas(2 * sizeof(T)) name##2 { T x, y; };                            \
  struct name##3 { T x, y, z; };                                                \
  struct alignas(sizeof(T) < 4 ? 4 * sizeof(T) : 16) name##4 { T x, y, z, w; }; \
  inline name##2 make_##name##2(T x, T y) { return {x, y}; }                    \
  inline name##3 make_##name##3(T x, T y, T z) { return {x, y, z}; }            \
  inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }

SNIPKERN_VECTOR_TYPES(float, float)
SNIPKERN_VECTOR_TYPES(double, double)
SNIPKERN_VECTOR_TYPES(int, int)
SNIPKERN_VECTOR_TYPES(short, short)
SNIPKERN_VECTOR_TYPES(unsigned short, ushort)
SNIPKERN_VECTOR_TYPES(unsigned char, uchar)
SNIPKERN_VECTOR_TYPES(long long, longlong)
#undef SNIPKERN_VECTOR_TYPES

struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

namespace snipkern::cuda::host {

// Who the running CUDA thread is.
struct ThreadPlace {
  uint3 thread{0, 0, 0}, block{0, 0, 0};
  dim3 block_size, grid_size;
};

// Kept in initialised thread storage: what is not, is taken for shared memory (shared_memory.cpp).
extern __thread const ThreadPlace* current_place;

// Memory of the running block, as large as its launch asked for.
void* dynamic_shared();

}  // namespace snipkern::cuda::host

#define threadIdx (::snipkern::cuda::host::current_place->thread)
#define blockIdx (::snipkern::cuda::host::current_place->block)
#define blockDim (::snipkern::cuda::host::current_place->block_size)
#define gridDim (::snipkern::cuda::host::current_place->grid_size)
constexpr int warpSize = 32;
