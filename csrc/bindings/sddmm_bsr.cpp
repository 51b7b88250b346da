#include "cpu/sddmm_bsr.h"

#include <tuple>

#include "bindings/binding.h"
#include "bindings/bsr_view.h"
#include "bindings/product_checks.h"
#include "cpu/spmm_bsr.h"

namespace snipkern {
namespace {

SddmmBsr value_grad(const char* op, const Tensor& a, const Tensor& b, const BsrIndex& index, Tensor& values) {
  SddmmBsr call{};
  call.dtype = kernel_dtype(op, a);
  call.a = a.const_data_ptr();
  call.b = b.const_data_ptr();
  call.index = index;
  call.batch = a.size(0);
  call.values = values.mutable_data_ptr();
  return call;
}

Tensor sddmm_bsr_cpu(const Tensor& a, const Tensor& b, const Tensor& topology, int64_t nnz, int64_t rows, int64_t cols,
                     int64_t block_height, int64_t block_width) {
  constexpr const char* kOp = "sddmm_bsr";
  require_value_grad(kOp, a, b, rows, cols);
  const BsrIndex index = block_index(kOp, topology, nnz, rows, cols, block_height, block_width);
  const Tensor left = as_contiguous(a), right = as_contiguous(b);
  Tensor values = torch::stable::new_empty(a, {nnz});
  sddmm_bsr(value_grad(kOp, left, right, index, values), run_tasks);
  return values;
}

std::tuple<Tensor, Tensor, Tensor> spmm_bsr_backward_cpu(const Tensor& grad, const Tensor& x, const Tensor& values,
                                                         const Tensor& topology, int64_t rows, int64_t cols,
                                                         int64_t block_height, int64_t block_width, bool with_bias) {
  constexpr const char* kOp = "spmm_bsr_backward";
  require_backward(kOp, grad, x, values, rows, cols);
  const BsrIndex index = block_index(kOp, topology, values.numel(), rows, cols, block_height, block_width);
  const Tensor dy = as_contiguous(grad), x_rows = as_contiguous(x), kept = as_contiguous(values);
  Tensor grad_x = new_output(x, {x.size(0), cols});
  Tensor grad_values = torch::stable::new_empty(x, {values.numel()});
  Tensor grad_bias = torch::stable::new_empty(x, {with_bias ? rows : 0});
  SddmmBsr call = value_grad(kOp, dy, x_rows, index, grad_values);
  call.bias = with_bias ? grad_bias.mutable_data_ptr() : nullptr;
  SpmmBsr input_grad{};
  input_grad.dtype = call.dtype;
  input_grad.x = call.a;
  input_grad.values = kept.const_data_ptr();
  input_grad.index = index;
  input_grad.transpose = true;
  input_grad.batch = call.batch;
  input_grad.y = grad_x.mutable_data_ptr();
  spmm_bsr_backward(call, input_grad, run_tasks);
  return {grad_x, grad_values, grad_bias};
}

}  // namespace
}  // namespace snipkern

STABLE_TORCH_LIBRARY_IMPL(snipkern, CPU, m) {
  m.impl("sddmm_bsr", TORCH_BOX(&snipkern::sddmm_bsr_cpu));
  m.impl("spmm_bsr_backward", TORCH_BOX(&snipkern::spmm_bsr_backward_cpu));
}
