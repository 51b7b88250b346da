// Runs a kernel: block after block in random order, each CUDA thread a fiber (block.h), and as strictly as the hardware
// is at its strictest. A launch fails, and says where and why, when
// - threads of a block wait at different barriers, or at a barrier that others have returned without reaching;
// - a warp operation misses lanes that its mask names, or reads a lane that the mask does not name;
// - an address is null, not aligned to what is accessed there, by an asynchronous copy or a matrix load too, or beyond
// an
//   array of known size (where the kernel is compiled with -fsanitize=alignment,null,bounds);
// - a thread returns while copies of its own are on their way;
// - dynamic shared memory is written past its end, or more is asked for than a block may have.
// Shared memory holds NaN (all bits set) when a block begins, and so do the targets of asynchronous copies until the
// copies are waited for: reading them too early spoils the result.
#pragma once

#include <cstddef>
#include <cstdint>
#include <tuple>
#include <utility>

#include "cuda/host/cuda_api.h"
#include "cuda/host/language.h"

namespace snipkern::cuda::host {

// How launches run from now on; all threads of the process share it.
struct Settings {
  uint64_t seed = 0;                 // of the order of blocks and threads
  int os_threads = 1;                // that share the blocks of a launch: ThreadSanitizer sees blocks race only so
  int multiprocessors = 4;           // what cudaDeviceGetAttribute tells: results must not depend on it
  int shared_memory_limit = 166912;  // of a block, in bytes: sm_80's 163 KiB; sm_90 and sm_100 have 232448
};
Settings& settings();

// A kernel with its arguments.
struct KernelCall {
  const char* name;
  const void* function;
  void (*invoke)(const void* arguments);
  const void* arguments;
};

// Keeps what went wrong for cudaGetLastError().
void run_kernel(const KernelCall& call, dim3 grid, dim3 block, size_t shared_bytes);

template <typename... Parameters, typename... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t,
            Arguments&&... arguments) {
  static_assert((size_t{0} + ... + sizeof(Parameters)) <= 4096, "a kernel takes at most 4 KiB of arguments");
  struct Bound {
    void (*kernel)(Parameters...);
    std::tuple<Parameters...> arguments;
  };
  const Bound bound{kernel, std::tuple<Parameters...>(std::forward<Arguments>(arguments)...)};
  const auto invoke = [](const void* opaque) {
    const Bound& call = *static_cast<const Bound*>(opaque);
    std::apply(call.kernel, call.arguments);
  };
  run_kernel({name, reinterpret_cast<const void*>(kernel), invoke, &bound}, grid, block, shared_bytes);
}

}  // namespace snipkern::cuda::host
