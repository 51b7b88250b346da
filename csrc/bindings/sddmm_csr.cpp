#include "cpu/sddmm_csr.h"

#include <tuple>

#include "bindings/binding.h"

namespace snipkern {
namespace {

SddmmCsr value_grad(const char* op, const Tensor& a, const Tensor& b, const TopologyView& view, int64_t rows,
                    int64_t cols, Tensor& values) {
  SddmmCsr call{};
  call.dtype = kernel_dtype(op, a);
  call.a = a.const_data_ptr();
  call.b = b.const_data_ptr();
  call.ptr = view.ptr;
  call.index = view.index;
  call.batch = a.size(0);
  call.rows = rows;
  call.cols = cols;
  call.values = values.mutable_data_ptr();
  return call;
}

Tensor sddmm_csr_cpu(const Tensor& a, const Tensor& b, const Tensor& topology, int64_t nnz, int64_t rows,
                     int64_t cols) {
  constexpr const char* kOp = "sddmm_csr";
  require_float(kOp, "a", a);
  SNIPKERN_REQUIRE(a.dim() == 2 && a.size(1) == rows, kOp, Sizes{a}, "a must be [batch, " << rows << "]");
  SNIPKERN_REQUIRE(b.dim() == 2 && b.size(1) == cols && b.size(0) == a.size(0), kOp, Sizes{b},
                   "b must be [" << a.size(0) << ", " << cols << "]");
  require_like(kOp, "b", b, a, "a");
  const TopologyView view(kOp, topology, nnz, rows, cols);
  const Tensor left = as_contiguous(a), right = as_contiguous(b);
  Tensor values = new_output(a, {nnz});
  sddmm_csr(value_grad(kOp, left, right, view, rows, cols, values), run_tasks);
  return values;
}

std::tuple<Tensor, Tensor, Tensor> spmm_csr_backward_cpu(const Tensor& grad, const Tensor& x, const Tensor& values,
                                                         const Tensor& topology, int64_t rows, int64_t cols,
                                                         bool with_bias) {
  constexpr const char* kOp = "spmm_csr_backward";
  require_float(kOp, "x", x);
  SNIPKERN_REQUIRE(x.dim() == 2 && x.size(1) == cols, kOp, Sizes{x}, "x must be [batch, " << cols << "]");
  SNIPKERN_REQUIRE(grad.dim() == 2 && grad.size(1) == rows && grad.size(0) == x.size(0), kOp, Sizes{grad},
                   "grad must be [" << x.size(0) << ", " << rows << "]");
  require_like(kOp, "grad", grad, x, "x");
  require_values(kOp, values, x, "x");
  const TopologyView view(kOp, topology, values.numel(), rows, cols);
  const Tensor dy = as_contiguous(grad), x_rows = as_contiguous(x), kept = as_contiguous(values);
  Tensor grad_x = new_output(x, {x.size(0), cols});
  Tensor grad_values = new_output(x, {values.numel()});
  Tensor grad_bias = new_output(x, {with_bias ? rows : 0});
  SddmmCsr call = value_grad(kOp, dy, x_rows, view, rows, cols, grad_values);
  call.bias = with_bias ? grad_bias.mutable_data_ptr() : nullptr;
  SpmmCsr input_grad{};
  input_grad.dtype = call.dtype;
  input_grad.x = call.a;
  input_grad.values = kept.const_data_ptr();
  input_grad.ptr = view.transposed_ptr;
  input_grad.index = view.transposed_index;
  input_grad.order = view.transposed_order;
  input_grad.batch = call.batch;
  input_grad.inputs = rows;
  input_grad.outputs = cols;
  input_grad.y = grad_x.mutable_data_ptr();
  spmm_csr_backward(call, input_grad, run_tasks);
  return {grad_x, grad_values, grad_bias};
}

}  // namespace
}  // namespace snipkern

STABLE_TORCH_LIBRARY_IMPL(snipkern, CPU, m) {
  m.impl("sddmm_csr", TORCH_BOX(&snipkern::sddmm_csr_cpu));
  m.impl("spmm_csr_backward", TORCH_BOX(&snipkern::spmm_csr_backward_cpu));
}
