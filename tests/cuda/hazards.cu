// Kernels that are wrong, one hazard each, to see that the harness says so. run_hazard() returns what it said; `out` is
// 64 floats, which the kernels write where they get that far.
#include <map>
#include <string>

#include "cuda/async_copy.cuh"
#include "cuda/platform.cuh"
#include "cuda/tensor_core.cuh"

namespace {

using namespace snipkern::cuda;

constexpr uint32_t kAll = 0xffffffffu;

// What is wrong ends a thread, or stops it for ever

__global__ void two_barriers(const float*, float* out) {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  out[threadIdx.x] = 1;
}

__global__ void returned_before_barrier(const float*, float* out) {
  if (threadIdx.x == 5) return;
  __syncthreads();
  out[threadIdx.x] = 1;
}

__global__ void lane_at_barrier(const float*, float* out) {
  if (threadIdx.x % 32 < 16) out[threadIdx.x] = __shfl_sync(kAll, 1.0f, 0);
  __syncthreads();
}

__global__ void lane_returned(const float*, float* out) {
  if (threadIdx.x == 3) return;
  out[threadIdx.x] = __shfl_xor_sync(kAll, 1.0f, 1);
}

__global__ void lane_not_named(const float*, float* out) { out[threadIdx.x] = __shfl_sync(0xffffu, 1.0f, 0); }

__global__ void source_not_named(const float*, float* out) {
  if (threadIdx.x < 16) out[threadIdx.x] = __shfl_sync(0xffffu, 1.0f, 20);
}

__global__ void two_operations(const float*, float* out) {
  if (threadIdx.x % 32 < 16) {
    out[threadIdx.x] = static_cast<float>(__ballot_sync(kAll, 1));
  } else {
    __syncwarp();
  }
}

__global__ void part_of_a_warp(const float*, float* out) { out[threadIdx.x] = __shfl_sync(kAll, 1.0f, 0); }

__global__ void lanes_miss_mma(const float*, float* out) {
  float d[4] = {};
  const uint32_t a[4] = {}, b[2] = {};
  if (threadIdx.x != 40) mma_m16n8k16(d, a, b, __half{});
  out[threadIdx.x] = d[0];
}

__global__ void trap(const float*, float*) {
  if (threadIdx.x == 7) __trap();
}

// Addresses

__global__ void misaligned_vector(const float* in, float* out) {
  const float4 four = *reinterpret_cast<const float4*>(in + threadIdx.x % 3);
  out[threadIdx.x] = four.x;
}

__global__ void null_pointer(const float* in, float* out) {
  const float* nothing = in[0] < 100.0f ? nullptr : in;
  out[threadIdx.x] = nothing[0];
}

__global__ void index_out_of_bounds(const float* in, float* out) {
  __shared__ float tile[64];
  tile[threadIdx.x + static_cast<int>(in[1])] = 1;
  out[threadIdx.x] = tile[threadIdx.x];
}

__global__ void misaligned_copy_target(const float* in, float*) {
  __shared__ __align__(16) float tile[64];
  copy_async_16(tile + 1, in);
  copy_async_commit();
  copy_async_wait<0>();
}

__global__ void misaligned_copy_source(const float* in, float*) {
  __shared__ __align__(16) float tile[64];
  copy_async_16(tile, in + 1);
  copy_async_commit();
  copy_async_wait<0>();
}

__global__ void copy_to_global(const float* in, float* out) {
  copy_async_4(out + threadIdx.x, in);
  copy_async_commit();
  copy_async_wait<0>();
}

__global__ void misaligned_matrix(const float*, float* out) {
  __shared__ __align__(16) float tile[64];
  tile[threadIdx.x] = 0;
  __syncthreads();
  uint32_t r[4];
  ldmatrix_x4(r, tile + (threadIdx.x == 9 ? 2 : 0));
  out[threadIdx.x] = static_cast<float>(r[0]);
}

__global__ void matrix_in_global(const float* in, float* out) {
  uint32_t r[2];
  ldmatrix_x2(r, in);
  out[threadIdx.x] = static_cast<float>(r[0]);
}

__global__ void dynamic_overflow(const float* in, float* out) {
  SNIPKERN_DYNAMIC_SHARED(float, tile);
  tile[threadIdx.x + 1] = in[threadIdx.x];
  __syncthreads();
  out[threadIdx.x] = tile[threadIdx.x + 1];
}

// Memory that is read before it holds what was meant

__global__ void uninitialised_dynamic(const float*, float* out) {
  SNIPKERN_DYNAMIC_SHARED(float, tile);
  out[threadIdx.x] = tile[threadIdx.x];
}

// The second block finds what the first has left, unless memory is spoilt in between.
__global__ void uninitialised_static(const float* in, float* out) {
  __shared__ float tile[64];
  out[threadIdx.x] = tile[threadIdx.x];
  tile[threadIdx.x] = in[threadIdx.x];
}

__global__ void missing_barrier(const float* in, float* out) {
  __shared__ float tile[64];
  tile[threadIdx.x] = in[threadIdx.x];
  out[threadIdx.x] = tile[63 - threadIdx.x];
}

__global__ void missing_warp_barrier(const float* in, float* out) {
  __shared__ float tile[64];
  tile[threadIdx.x] = in[threadIdx.x];
  out[threadIdx.x] = tile[threadIdx.x ^ 1];
}

__global__ void copy_not_waited_for(const float* in, float* out) {
  __shared__ float tile[64];
  copy_async_4(tile + threadIdx.x, in + threadIdx.x);
  copy_async_commit();
  out[threadIdx.x] = tile[threadIdx.x];
  copy_async_wait<0>();
}

__global__ void copy_waited_for_too_little(const float* in, float* out) {
  __shared__ float tile[64];
  copy_async_4(tile + threadIdx.x, in + threadIdx.x);
  copy_async_commit();
  copy_async_wait<1>();
  out[threadIdx.x] = tile[threadIdx.x];
  copy_async_wait<0>();
}

__global__ void copy_not_committed(const float* in, float* out) {
  __shared__ float tile[64];
  copy_async_4(tile + threadIdx.x, in + threadIdx.x);
  copy_async_wait<0>();
  out[threadIdx.x] = tile[threadIdx.x];
  copy_async_commit();
  copy_async_wait<0>();
}

__global__ void copy_pending_at_return(const float* in, float*) {
  __shared__ float tile[64];
  copy_async_4(tile + threadIdx.x, in + threadIdx.x);
  copy_async_commit();
}

// Nothing is wrong with these

__global__ void fine(const float* in, float* out) {
  __shared__ float tile[64];
  SNIPKERN_DYNAMIC_SHARED(float, copied);
  tile[threadIdx.x] = in[threadIdx.x];
  copy_async_4(copied + threadIdx.x, in + threadIdx.x);
  copy_async_commit();
  copy_async_wait<0>();
  __syncthreads();
  out[threadIdx.x] = 0.5f * (tile[63 - threadIdx.x] + copied[63 - threadIdx.x]);
}

__global__ void large(const float*, float* out) {
  SNIPKERN_DYNAMIC_SHARED(float, tile);
  tile[threadIdx.x] = 1;
  out[threadIdx.x] = tile[threadIdx.x];
}

using Kernel = void (*)(const float*, float*);

const std::map<std::string, Kernel> kKernels = {
    {"two_barriers", two_barriers},
    {"returned_before_barrier", returned_before_barrier},
    {"lane_at_barrier", lane_at_barrier},
    {"lane_returned", lane_returned},
    {"lane_not_named", lane_not_named},
    {"source_not_named", source_not_named},
    {"two_operations", two_operations},
    {"part_of_a_warp", part_of_a_warp},
    {"lanes_miss_mma", lanes_miss_mma},
    {"trap", trap},
    {"misaligned_vector", misaligned_vector},
    {"null_pointer", null_pointer},
    {"index_out_of_bounds", index_out_of_bounds},
    {"misaligned_copy_target", misaligned_copy_target},
    {"misaligned_copy_source", misaligned_copy_source},
    {"copy_to_global", copy_to_global},
    {"misaligned_matrix", misaligned_matrix},
    {"matrix_in_global", matrix_in_global},
    {"dynamic_overflow", dynamic_overflow},
    {"uninitialised_dynamic", uninitialised_dynamic},
    {"uninitialised_static", uninitialised_static},
    {"missing_barrier", missing_barrier},
    {"missing_warp_barrier", missing_warp_barrier},
    {"copy_not_waited_for", copy_not_waited_for},
    {"copy_waited_for_too_little", copy_waited_for_too_little},
    {"copy_not_committed", copy_not_committed},
    {"copy_pending_at_return", copy_pending_at_return},
    {"fine", fine},
    {"large", large},
};

}  // namespace

// The message, empty where none was given. It stays valid until the next call.
extern "C" __attribute__((visibility("default"))) const char* run_hazard(const char* name, int blocks, int threads,
                                                                         int shared_bytes, int allowed_bytes,
                                                                         const float* in, float* out) {
  const Kernel kernel = kKernels.at(name);
  if (allowed_bytes > 0) {
    const cudaError_t refused =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, allowed_bytes);
    if (refused != cudaSuccess) return cudaGetErrorName(cudaGetLastError());
  }
  SNIPKERN_LAUNCH(kernel, blocks, threads, shared_bytes, nullptr, in, out);
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? "" : cudaGetErrorString(error);
}
