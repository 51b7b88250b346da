// Copies from global to shared memory that run while the thread goes on (cp.async). A thread's copies become visible to
// it after copy_async_wait, to the block after the __syncthreads() that follows.
#pragma once

#include "cuda/platform.cuh"

#ifdef SNIPKERN_ON_HOST
#  include "cuda/host/async_copy.h"
#endif

namespace snipkern::cuda {

// 16 bytes, of which the first `bytes` come from `global` (not read where that is 0) and the rest are zero. Both
// addresses must be aligned to 16 bytes. Passes by the L1 cache.
__device__ __forceinline__ void copy_async_16(void* shared, const void* global, int bytes = 16) {
#ifdef SNIPKERN_ON_HOST
  host::copy_async(shared, global, 16, bytes);
#else
  const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(global), "r"(bytes) : "memory");
#endif
}

// 4 bytes, all of them or none, else as above; aligned to 4.
__device__ __forceinline__ void copy_async_4(void* shared, const void* global, int bytes = 4) {
#ifdef SNIPKERN_ON_HOST
  host::copy_async(shared, global, 4, bytes);
#else
  const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(address), "l"(global), "r"(bytes) : "memory");
#endif
}

// Closes a group: the thread's copies since the last one, if any.
__device__ __forceinline__ void copy_async_commit() {
#ifdef SNIPKERN_ON_HOST
  host::copy_async_commit();
#else
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits until at most the newest N groups are on their way.
template <int N>
__device__ __forceinline__ void copy_async_wait() {
#ifdef SNIPKERN_ON_HOST
  host::copy_async_wait(N);
#else
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
#endif
}

}  // namespace snipkern::cuda
