#include "cpu/zero_pruned.h"

#include "bindings/binding.h"
#include "bindings/masked_tensor.h"
#include "cpu/memory.h"

namespace snipkern {
namespace {

ZeroPruned checked(const char* op, const Tensor& tensor, const Tensor& words) {
  require_masked(op, tensor, words);
  ZeroPruned call{};
  call.element_bytes = static_cast<int>(tensor.element_size());
  call.from = tensor.const_data_ptr();
  call.words = words.const_data_ptr<int64_t>();
  call.numel = tensor.numel();
  return call;
}

Tensor zero_pruned_cpu(const Tensor& tensor, const Tensor& words) {
  ZeroPruned call = checked("zero_pruned", tensor, words);
  Tensor copy = torch::stable::new_empty(tensor, tensor.sizes());
  call.to = copy.mutable_data_ptr();
  prefer_huge_pages(call.to, static_cast<size_t>(call.numel * call.element_bytes));
  zero_pruned(call, run_tasks);
  return copy;
}

void zero_pruned_in_place_cpu(const Tensor& tensor, const Tensor& words) {
  ZeroPruned call = checked("zero_pruned_", tensor, words);
  call.to = tensor.mutable_data_ptr();
  zero_pruned(call, run_tasks);
}

}  // namespace
}  // namespace snipkern

STABLE_TORCH_LIBRARY_IMPL(snipkern, CPU, m) {
  m.impl("zero_pruned", TORCH_BOX(&snipkern::zero_pruned_cpu));
  m.impl("zero_pruned_", TORCH_BOX(&snipkern::zero_pruned_in_place_cpu));
}
