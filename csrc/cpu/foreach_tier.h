// Compiles the file named by SNIPKERN_KERNEL once for every ISA tier, each time in its own
// namespace:
//
//   #define SNIPKERN_KERNEL "cpu/spmm_csr.kernel.h"
//   #include "cpu/foreach_tier.h"
//
// The kernel file sees SNIPKERN_TIER (the namespace: scalar, avx2, avx512) and
// SNIPKERN_VECTOR_BYTES. Target pragmas, not compiler flags: with flags, inline functions of the
// standard library would be compiled for AVX-512 and could be the copy that the linker keeps for an
// older processor. So every standard header comes before this one. No include guard: it is meant to
// be included once per kernel file.

#ifndef SNIPKERN_KERNEL
#  error "define SNIPKERN_KERNEL before including foreach_tier.h"
#endif

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#if defined(__x86_64__)
#  include <immintrin.h>  // whose functions carry their own targets
#endif

#include "cpu/dtype.h"
#include "cpu/isa.h"

// Before a short loop over vectors: unrolled whole, so that they stay in registers.
// SNIPKERN_NO_UNROLL: before one whose body is long, and would only be compiled several times.
#if defined(__clang__)
#  define SNIPKERN_UNROLL _Pragma("unroll")
#  define SNIPKERN_NO_UNROLL _Pragma("nounroll")
#else
#  define SNIPKERN_UNROLL _Pragma("GCC unroll 16")
#  define SNIPKERN_NO_UNROLL _Pragma("GCC unroll 1")
#endif

// Before a function whose body is long and whose calls are few for what it does: a copy of its own for every caller
// would take the compiler long and serve nobody.
#define SNIPKERN_NOINLINE __attribute__((noinline))

#define SNIPKERN_TIER scalar
#define SNIPKERN_VECTOR_BYTES 16
#include SNIPKERN_KERNEL
#undef SNIPKERN_TIER
#undef SNIPKERN_VECTOR_BYTES

#if defined(__x86_64__)
#  if defined(__clang__)
#    pragma clang attribute push(__attribute__((target("avx2,fma,f16c,bmi,bmi2,lzcnt,popcnt"))), apply_to = function)
#  else
#    pragma GCC push_options
#    pragma GCC target("avx2,fma,f16c,bmi,bmi2,lzcnt,popcnt")
#  endif
#  define SNIPKERN_TIER avx2
#  define SNIPKERN_VECTOR_BYTES 32
#  include SNIPKERN_KERNEL
#  undef SNIPKERN_TIER
#  undef SNIPKERN_VECTOR_BYTES
#  if defined(__clang__)
#    pragma clang attribute pop
#  else
#    pragma GCC pop_options
#  endif

#  if defined(__clang__)
#    pragma clang attribute push(                                                                          \
        __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,bmi,bmi2,lzcnt,popcnt"))), \
        apply_to = function)
#  else
#    pragma GCC push_options
#    pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,bmi,bmi2,lzcnt,popcnt,prefer-vector-width=512")
#  endif
#  define SNIPKERN_TIER avx512
#  define SNIPKERN_VECTOR_BYTES 64
#  include SNIPKERN_KERNEL
#  undef SNIPKERN_TIER
#  undef SNIPKERN_VECTOR_BYTES
#  if defined(__clang__)
#    pragma clang attribute pop
#  else
#    pragma GCC pop_options
#  endif
// Calls the current tier's function: SNIPKERN_DISPATCH(f, a, b) -> avx512::f(a, b).
#  define SNIPKERN_DISPATCH(function, ...)                         \
    (current_isa() == Isa::kAvx512 ? avx512::function(__VA_ARGS__) \
     : current_isa() == Isa::kAvx2 ? avx2::function(__VA_ARGS__)   \
                                   : scalar::function(__VA_ARGS__))
#else
#  define SNIPKERN_DISPATCH(function, ...) scalar::function(__VA_ARGS__)
#endif
