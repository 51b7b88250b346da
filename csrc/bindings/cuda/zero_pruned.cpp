#include "cuda/zero_pruned.h"

#include "bindings/cuda/binding.h"
#include "bindings/masked_tensor.h"

namespace snipkern::cuda {
namespace {

void run(const char* op, const Tensor& tensor, const Tensor& words, void* to) {
  const CallSite site(tensor);
  ZeroPruned call{};
  call.element_bytes = static_cast<int>(tensor.element_size());
  call.from = tensor.const_data_ptr();
  call.words = words.const_data_ptr<int64_t>();
  call.numel = tensor.numel();
  call.to = to;
  require_launched(op, zero_pruned(call, site.stream()));
}

Tensor zero_pruned_cuda(const Tensor& tensor, const Tensor& words) {
  require_masked("zero_pruned", tensor, words);
  Tensor copy = torch::stable::new_empty(tensor, tensor.sizes());
  run("zero_pruned", tensor, words, copy.mutable_data_ptr());
  return copy;
}

void zero_pruned_in_place_cuda(const Tensor& tensor, const Tensor& words) {
  require_masked("zero_pruned_", tensor, words);
  run("zero_pruned_", tensor, words, tensor.mutable_data_ptr());
}

}  // namespace
}  // namespace snipkern::cuda

SNIPKERN_CUDA_LIBRARY(m) {
  m.impl("zero_pruned", TORCH_BOX(&snipkern::cuda::zero_pruned_cuda));
  m.impl("zero_pruned_", TORCH_BOX(&snipkern::cuda::zero_pruned_in_place_cuda));
}
