// The only switch between CUDA and the CPU. With -DSNIPKERN_ON_HOST the .cu files are plain C++ and their kernels run
// on the CPU, under a harness that checks them (host/launch.h); else nvcc compiles them.
#pragma once

#include <cstdint>

#ifdef SNIPKERN_ON_HOST

#  include "cuda/host/cuda_api.h"
#  include "cuda/host/half.h"
#  include "cuda/host/intrinsics.h"
#  include "cuda/host/language.h"
#  include "cuda/host/launch.h"

// Launches a kernel; a template with its arguments stands in parentheses. Errors are cudaGetLastError()'s.
#  define SNIPKERN_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
    ::snipkern::cuda::host::launch(#kernel, kernel, grid, block, shared_bytes, stream, __VA_ARGS__)

// The block's dynamic shared memory, aligned to 128 bytes, as `T* name`.
#  define SNIPKERN_DYNAMIC_SHARED(T, name) T* name = static_cast<T*>(::snipkern::cuda::host::dynamic_shared())

#else

#  include <cuda_bf16.h>
#  include <cuda_fp16.h>
#  include <cuda_runtime.h>

#  define SNIPKERN_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
    kernel<<<grid, block, shared_bytes, stream>>>(__VA_ARGS__)

#  define SNIPKERN_DYNAMIC_SHARED(T, name)                                    \
    extern __shared__ __align__(128) unsigned char snipkern_dynamic_shared[]; \
    T* name = reinterpret_cast<T*>(snipkern_dynamic_shared)

#endif
