#include "cpu/zero_pruned.h"

#include "bindings/binding.h"
#include "cpu/memory.h"

namespace snipkern {
namespace {

constexpr int64_t kMaskBits = 64;

// Prints like Python's list of a tensor's strides.
struct Strides {
  const Tensor& tensor;
};

std::ostream& operator<<(std::ostream& out, const Strides& strides) {
  out << "strides [";
  for (int64_t i = 0; i < strides.tensor.dim(); ++i) out << (i == 0 ? "" : ", ") << strides.tensor.stride(i);
  return out << "]";
}

ZeroPruned checked(const char* op, const Tensor& tensor, const Tensor& words) {
  require_float(op, "tensor", tensor);
  SNIPKERN_REQUIRE(tensor.is_contiguous(), op, Strides{tensor}, "tensor must be contiguous");
  const int64_t expected = (tensor.numel() + kMaskBits - 1) / kMaskBits;
  SNIPKERN_REQUIRE(
      words.scalar_type() == ScalarType::Long && words.dim() == 1 && words.size(0) == expected && words.is_contiguous(),
      op, Sizes{words} << " " << DTypeName{words.scalar_type()},
      "words must be the mask of " << tensor.numel() << " elements, " << expected << " contiguous int64 words");
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
