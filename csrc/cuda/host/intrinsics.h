// Barriers, warp operations, atomics and scalar intrinsics of CUDA C++.
#pragma once

#include <math.h>  // not <cmath>: CUDA's fma() and others take floats in the global namespace too

#include <algorithm>
#include <cstring>

#include "cuda/host/half.h"
#include "cuda/host/language.h"

namespace snipkern::cuda::host {

// What every thread of the block brought: how many votes are not zero. `site` is the place in the source.
int block_barrier(const char* site, int vote);

enum class Shuffle { kIndex, kUp, kDown, kXor };
uint64_t warp_shuffle(uint32_t mask, uint64_t value, Shuffle kind, int lane_argument, int width);
uint32_t warp_ballot(uint32_t mask, bool vote);
uint32_t warp_match(uint32_t mask, uint64_t value);
void warp_barrier(uint32_t mask);
void thread_fence();
bool fenced();  // whether the running thread has passed a __threadfence()
[[noreturn]] void fault(const char* what);

template <typename T>
T shuffle(uint32_t mask, T value, Shuffle kind, int lane_argument, int width) {
  static_assert(sizeof(T) <= sizeof(uint64_t));
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = warp_shuffle(mask, bits, kind, lane_argument, width);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

// Atomics order nothing but themselves, unless a fence stands between them and other accesses.
template <typename T, typename Update>
T read_modify_write(T* target, const Update& update) {
  T old, changed;
  __atomic_load(target, &old, __ATOMIC_RELAXED);
  const int order = fenced() ? __ATOMIC_ACQ_REL : __ATOMIC_RELAXED;
  do {
    changed = update(old);
  } while (!__atomic_compare_exchange(target, &old, &changed, false, order, __ATOMIC_RELAXED));
  return old;
}

}  // namespace snipkern::cuda::host

#define SNIPKERN_HOST_QUOTE_(text) #text
#define SNIPKERN_HOST_QUOTE(text) SNIPKERN_HOST_QUOTE_(text)
// The counter tells two barriers on one line apart.
#define SNIPKERN_HOST_SITE __FILE__ ":" SNIPKERN_HOST_QUOTE(__LINE__) "#" SNIPKERN_HOST_QUOTE(__COUNTER__)
#define __syncthreads() ((void)::snipkern::cuda::host::block_barrier(SNIPKERN_HOST_SITE, 0))
#define __syncthreads_count(vote) ::snipkern::cuda::host::block_barrier(SNIPKERN_HOST_SITE, (vote) != 0)
#define __syncthreads_or(vote) (::snipkern::cuda::host::block_barrier(SNIPKERN_HOST_SITE, (vote) != 0) != 0)
#define __syncthreads_and(vote) (::snipkern::cuda::host::block_barrier(SNIPKERN_HOST_SITE, (vote) == 0) == 0)

inline void __threadfence() { snipkern::cuda::host::thread_fence(); }
inline void __threadfence_block() { snipkern::cuda::host::thread_fence(); }
[[noreturn]] inline void __trap() { snipkern::cuda::host::fault("__trap()"); }

// Warps

inline void __syncwarp(uint32_t mask = 0xffffffffu) { snipkern::cuda::host::warp_barrier(mask); }
template <typename T>
T __shfl_sync(uint32_t mask, T value, int lane, int width = 32) {
  using namespace snipkern::cuda::host;
  return shuffle(mask, value, Shuffle::kIndex, lane, width);
}
template <typename T>
T __shfl_up_sync(uint32_t mask, T value, unsigned distance, int width = 32) {
  using namespace snipkern::cuda::host;
  return shuffle(mask, value, Shuffle::kUp, static_cast<int>(distance), width);
}
template <typename T>
T __shfl_down_sync(uint32_t mask, T value, unsigned distance, int width = 32) {
  using namespace snipkern::cuda::host;
  return shuffle(mask, value, Shuffle::kDown, static_cast<int>(distance), width);
}
template <typename T>
T __shfl_xor_sync(uint32_t mask, T value, int lanes, int width = 32) {
  using namespace snipkern::cuda::host;
  return shuffle(mask, value, Shuffle::kXor, lanes, width);
}
inline unsigned __ballot_sync(uint32_t mask, int vote) { return snipkern::cuda::host::warp_ballot(mask, vote != 0); }
inline int __any_sync(uint32_t mask, int vote) { return __ballot_sync(mask, vote) != 0; }
inline int __all_sync(uint32_t mask, int vote) { return __ballot_sync(mask, vote == 0) == 0; }
template <typename T>
unsigned __match_any_sync(uint32_t mask, T value) {
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  return snipkern::cuda::host::warp_match(mask, bits);
}

// Atomics

// Floating sums would depend on the order of threads, so there are none.
template <typename T>
T atomicAdd(T* target, T value) {
  static_assert(std::is_integral_v<T>, "atomic sums must be of integers: others depend on the order of threads");
  return snipkern::cuda::host::read_modify_write(target, [value](T old) { return static_cast<T>(old + value); });
}
template <typename T>
T atomicMax(T* target, T value) {
  return snipkern::cuda::host::read_modify_write(target, [value](T old) { return std::max(old, value); });
}
template <typename T>
T atomicMin(T* target, T value) {
  return snipkern::cuda::host::read_modify_write(target, [value](T old) { return std::min(old, value); });
}
template <typename T>
T atomicOr(T* target, T value) {
  return snipkern::cuda::host::read_modify_write(target, [value](T old) { return static_cast<T>(old | value); });
}
template <typename T>
T atomicAnd(T* target, T value) {
  return snipkern::cuda::host::read_modify_write(target, [value](T old) { return static_cast<T>(old & value); });
}
template <typename T>
T atomicExch(T* target, T value) {
  return snipkern::cuda::host::read_modify_write(target, [value](T) { return value; });
}
template <typename T>
T atomicCAS(T* target, T compare, T value) {
  return snipkern::cuda::host::read_modify_write(target,
                                                 [compare, value](T old) { return old == compare ? value : old; });
}

// Scalars

inline int __popc(unsigned value) { return __builtin_popcount(value); }
inline int __popcll(unsigned long long value) { return __builtin_popcountll(value); }
inline int __clz(int value) { return value == 0 ? 32 : __builtin_clz(static_cast<unsigned>(value)); }
inline int __clzll(long long value) {
  return value == 0 ? 64 : __builtin_clzll(static_cast<unsigned long long>(value));
}
inline int __ffs(int value) { return __builtin_ffs(value); }
inline int __ffsll(long long value) { return __builtin_ffsll(value); }
inline unsigned __umulhi(unsigned a, unsigned b) { return static_cast<unsigned>(uint64_t{a} * b >> 32); }

inline float __int_as_float(int bits) { return snipkern::cuda::host::bit_cast<float>(bits); }
inline int __float_as_int(float value) { return snipkern::cuda::host::bit_cast<int>(value); }
inline float __uint_as_float(unsigned bits) { return snipkern::cuda::host::bit_cast<float>(bits); }
inline unsigned __float_as_uint(float value) { return snipkern::cuda::host::bit_cast<unsigned>(value); }
inline double __longlong_as_double(long long bits) { return snipkern::cuda::host::bit_cast<double>(bits); }
inline long long __double_as_longlong(double value) { return snipkern::cuda::host::bit_cast<long long>(value); }

inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdividef(float a, float b) { return a / b; }
inline float rsqrtf(float value) { return 1.0f / std::sqrt(value); }

template <typename T>
T __ldg(const T* address) {
  return *address;
}
template <typename T>
T __ldcs(const T* address) {
  return *address;
}
template <typename T>
T __ldcg(const T* address) {
  return *address;
}
template <typename T>
void __stcs(T* address, T value) {
  *address = value;
}
template <typename T>
void __stcg(T* address, T value) {
  *address = value;
}

using std::isfinite;
using std::isinf;
using std::isnan;
using std::max;
using std::min;
