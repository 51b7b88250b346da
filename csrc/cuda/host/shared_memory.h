// Where __shared__ variables lie.
#pragma once

#include <cstddef>

namespace snipkern::cuda::host {

// The calling thread's: what this program or library has of uninitialised variables that each thread owns. All others
// of that kind would be overwritten, so the harness has none, and kernels' files must not have any.
struct StaticShared {
  char *begin = nullptr, *end = nullptr;
};
StaticShared static_shared();

// Not under AddressSanitizer, for which they are ordinary static variables. It also sees what is written past the end
// of dynamic shared memory, which elsewhere takes some bytes behind it that must stay as they are.
#ifdef SNIPKERN_HOST_ASAN
constexpr bool static_shared_is_known() { return false; }
constexpr size_t shared_fence_bytes() { return 0; }
#else
constexpr bool static_shared_is_known() { return true; }
constexpr size_t shared_fence_bytes() { return 64; }
#endif

}  // namespace snipkern::cuda::host
