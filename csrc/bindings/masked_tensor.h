// The requirements of snipkern/ops/schema_zero_pruned.py in C++: a dense tensor, and the words of its mask.
#pragma once

#include "bindings/checks.h"

namespace snipkern {

// Prints like Python's list of a tensor's strides.
struct Strides {
  const Tensor& tensor;
};

inline std::ostream& operator<<(std::ostream& out, const Strides& strides) {
  out << "strides [";
  for (int64_t i = 0; i < strides.tensor.dim(); ++i) out << (i == 0 ? "" : ", ") << strides.tensor.stride(i);
  return out << "]";
}

inline void require_masked(const char* op, const Tensor& tensor, const Tensor& words) {
  constexpr int64_t kMaskBits = 64;
  require_float(op, "tensor", tensor);
  SNIPKERN_REQUIRE(tensor.is_contiguous(), op, Strides{tensor}, "tensor must be contiguous");
  const int64_t expected = (tensor.numel() + kMaskBits - 1) / kMaskBits;
  SNIPKERN_REQUIRE(
      words.scalar_type() == ScalarType::Long && words.dim() == 1 && words.size(0) == expected && words.is_contiguous(),
      op, Sizes{words} << " " << DTypeName{words.scalar_type()},
      "words must be the mask of " << tensor.numel() << " elements, " << expected << " contiguous int64 words");
  require_same_device(op, "words", words, tensor, "tensor");
}

}  // namespace snipkern
