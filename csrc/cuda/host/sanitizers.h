// What the harness tells ThreadSanitizer and AddressSanitizer. It is compiled without them itself, so that they see
// kernels only: memory that the harness touches for a kernel, and which accesses a barrier orders, must be told.
#pragma once

#include <cstddef>

#ifdef SNIPKERN_HOST_TSAN
extern "C" {
void* __tsan_get_current_fiber();
void* __tsan_create_fiber(unsigned flags);
void __tsan_destroy_fiber(void* fiber);
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
void __tsan_acquire(void* address);
void __tsan_release(void* address);
void __tsan_read_range(void* address, unsigned long size);
void __tsan_write_range(void* address, unsigned long size);
}
#endif
#ifdef SNIPKERN_HOST_ASAN
extern "C" {
void* __asan_region_is_poisoned(void* address, size_t size);
void __sanitizer_start_switch_fiber(void** fake_stack, const void* bottom, size_t size);
void __sanitizer_finish_switch_fiber(void* fake_stack, const void** bottom, size_t* size);
}
#endif

namespace snipkern::cuda::host {

// All that a thread did before release() comes before what another does after acquire() of the same address.
inline void release([[maybe_unused]] void* address) {
#ifdef SNIPKERN_HOST_TSAN
  __tsan_release(address);
#endif
}

inline void acquire([[maybe_unused]] void* address) {
#ifdef SNIPKERN_HOST_TSAN
  __tsan_acquire(address);
#endif
}

// The running thread reads, or writes, this memory; false where it must not.
inline bool note_read([[maybe_unused]] const void* address, [[maybe_unused]] size_t size) {
#ifdef SNIPKERN_HOST_TSAN
  __tsan_read_range(const_cast<void*>(address), size);
#endif
#ifdef SNIPKERN_HOST_ASAN
  return size == 0 || __asan_region_is_poisoned(const_cast<void*>(address), size) == nullptr;
#else
  return true;
#endif
}

inline bool note_write([[maybe_unused]] void* address, [[maybe_unused]] size_t size) {
#ifdef SNIPKERN_HOST_TSAN
  __tsan_write_range(address, size);
#endif
#ifdef SNIPKERN_HOST_ASAN
  return size == 0 || __asan_region_is_poisoned(address, size) == nullptr;
#else
  return true;
#endif
}

}  // namespace snipkern::cuda::host
