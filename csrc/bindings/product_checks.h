// What the products with single weights and with blocks require alike of their tensors, on any device and in the words
// of snipkern/ops/schema.py. What they require of a topology is their own.
#pragma once

#include "bindings/checks.h"

namespace snipkern {

// Of spmm_csr and spmm_bsr.
inline void require_product(const char* op, const Tensor& x, const Tensor& values, const std::optional<Tensor>& bias,
                            int64_t inputs, int64_t outputs) {
  require_float(op, "x", x);
  SNIPKERN_REQUIRE(x.dim() == 2 && x.size(1) == inputs, op, Sizes{x}, "x must be [batch, " << inputs << "]");
  require_values(op, values, x, "x");
  require_bias(op, bias, outputs, x);
}

// Of sddmm_csr and sddmm_bsr.
inline void require_value_grad(const char* op, const Tensor& a, const Tensor& b, int64_t rows, int64_t cols) {
  require_float(op, "a", a);
  SNIPKERN_REQUIRE(a.dim() == 2 && a.size(1) == rows, op, Sizes{a}, "a must be [batch, " << rows << "]");
  SNIPKERN_REQUIRE(b.dim() == 2 && b.size(1) == cols && b.size(0) == a.size(0), op, Sizes{b},
                   "b must be [" << a.size(0) << ", " << cols << "]");
  require_like(op, "b", b, a, "a");
}

// Of spmm_csr_backward and spmm_bsr_backward.
inline void require_backward(const char* op, const Tensor& grad, const Tensor& x, const Tensor& values, int64_t rows,
                             int64_t cols) {
  require_float(op, "x", x);
  SNIPKERN_REQUIRE(x.dim() == 2 && x.size(1) == cols, op, Sizes{x}, "x must be [batch, " << cols << "]");
  SNIPKERN_REQUIRE(grad.dim() == 2 && grad.size(1) == rows && grad.size(0) == x.size(0), op, Sizes{grad},
                   "grad must be [" << x.size(0) << ", " << rows << "]");
  require_like(op, "grad", grad, x, "x");
  require_values(op, values, x, "x");
}

}  // namespace snipkern
