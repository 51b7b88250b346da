// Element types of the tensors that kernels see. The 16-bit ones are storage only: sums are in
// float.
#pragma once

#include <cstdint>

namespace snipkern {

enum class DType { kFloat, kDouble, kHalf, kBFloat16 };

struct Half {
  uint16_t bits;
};

struct BFloat16 {
  uint16_t bits;
};

// The type that products are summed in.
template <typename T>
struct Accumulator {
  using type = float;
};
template <>
struct Accumulator<double> {
  using type = double;
};
template <typename T>
using accumulator_t = typename Accumulator<T>::type;

}  // namespace snipkern
