// What every binding of a CUDA kernel needs. With -DSNIPKERN_ON_HOST the same bindings and kernels serve CPU tensors,
// as ops of their own: torch.ops.snipkern_on_host (tests/cuda/on_host.py).
#pragma once

#include <stdexcept>
#include <string>

#include "bindings/arguments.h"
#include "cuda/platform.cuh"

#ifdef SNIPKERN_ON_HOST

#  define SNIPKERN_CUDA_LIBRARY(m) STABLE_TORCH_LIBRARY_IMPL(snipkern_on_host, CPU, m)

#else

#  include <torch/csrc/stable/accelerator.h>

// As torch's shim.h declares it for those who define USE_CUDA.
extern "C" AOTI_TORCH_EXPORT AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device_index, void** stream);

// SNIPKERN_CUDA_LIBRARY(m) { m.impl("op", TORCH_BOX(&binding)); }
#  define SNIPKERN_CUDA_LIBRARY(m) STABLE_TORCH_LIBRARY_IMPL(snipkern, CUDA, m)

#endif

namespace snipkern::cuda {

// Where a call runs: while it lives, the tensor's device is the current one; `stream` is the one that PyTorch's user
// has chosen there.
class CallSite {
 public:
#ifdef SNIPKERN_ON_HOST
  explicit CallSite(const Tensor&) {}
#else
  explicit CallSite(const Tensor& tensor) : guard_(tensor.get_device_index()) {
    void* current = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &current));
    stream_ = static_cast<cudaStream_t>(current);
  }
#endif
  CallSite(const CallSite&) = delete;
  CallSite& operator=(const CallSite&) = delete;

  cudaStream_t stream() const { return stream_; }

 private:
#ifndef SNIPKERN_ON_HOST
  torch::stable::accelerator::DeviceGuard guard_;
#endif
  cudaStream_t stream_ = nullptr;
};

// A launch that was refused raises here; one that fails later, at some later call, as all CUDA errors do.
inline void require_launched(const char* op, cudaError_t error) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // an error that was told of is not told again by the next call
  throw std::runtime_error(std::string(op) + ": the kernel must run (got " + cudaGetErrorName(error) + ": " +
                           cudaGetErrorString(error) + ")");
}

// A new tensor to be written whole, on the device of another and of its dtype.
inline Tensor new_output(const Tensor& like, std::initializer_list<int64_t> sizes) {
  return torch::stable::new_empty(like, sizes);
}

// Memory for a call's own use, on the device of a tensor; its contents are anything.
inline Tensor new_scratch(const Tensor& like, int64_t bytes) {
  return torch::stable::new_empty(like, {bytes}, ScalarType::Byte);
}

// Launches a call with the scratch memory that it asks for; the allocator keeps that for this stream's next calls.
template <typename Call>
void launch_with_scratch(const char* op, Call& call, int64_t (*bytes)(const Call&),
                         cudaError_t (*launch)(const Call&, cudaStream_t), const Tensor& like, const CallSite& site) {
  Tensor scratch = new_scratch(like, bytes(call));
  call.scratch = scratch.mutable_data_ptr();
  require_launched(op, launch(call, site.stream()));
}

}  // namespace snipkern::cuda
