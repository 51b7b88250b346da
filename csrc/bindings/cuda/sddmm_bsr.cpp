#include "cuda/sddmm_bsr.h"

#include <tuple>

#include "bindings/cuda/binding.h"
#include "bindings/cuda/block_view.h"
#include "bindings/cuda/tf32.h"
#include "bindings/product_checks.h"
#include "cuda/spmm_bsr_backward.h"

namespace snipkern::cuda {
namespace {

Tensor sddmm_bsr_cuda(const Tensor& a, const Tensor& b, const Tensor& topology, int64_t nnz, int64_t rows, int64_t cols,
                      int64_t block_height, int64_t block_width) {
  constexpr const char* kOp = "sddmm_bsr";
  require_value_grad(kOp, a, b, rows, cols);
  const BlockIndex index = block_index(kOp, topology, nnz, rows, cols, block_height, block_width, a, "a");
  const CallSite site(a);
  const Tensor left = as_contiguous(a), right = as_contiguous(b);
  Tensor values = new_output(a, {nnz});
  SddmmBsr call{};
  call.dtype = kernel_dtype(kOp, a);
  call.allow_tf32 = tf32_permission();
  call.a = left.const_data_ptr();
  call.b = right.const_data_ptr();
  call.index = index;
  call.batch = a.size(0);
  call.values = values.mutable_data_ptr();
  launch_with_scratch(kOp, call, sddmm_bsr_scratch, sddmm_bsr, a, site);
  return values;
}

std::tuple<Tensor, Tensor, Tensor> spmm_bsr_backward_cuda(const Tensor& grad, const Tensor& x, const Tensor& values,
                                                          const Tensor& topology, int64_t rows, int64_t cols,
                                                          int64_t block_height, int64_t block_width, bool with_bias) {
  constexpr const char* kOp = "spmm_bsr_backward";
  require_backward(kOp, grad, x, values, rows, cols);
  const BlockIndex index = block_index(kOp, topology, values.numel(), rows, cols, block_height, block_width, x, "x");
  const CallSite site(x);
  const Tensor dy = as_contiguous(grad), x_rows = as_contiguous(x), kept = as_contiguous(values);
  Tensor grad_x = new_output(x, {x.size(0), cols});
  Tensor grad_values = new_output(x, {values.numel()});
  Tensor grad_bias = new_output(x, {with_bias ? rows : 0});
  SpmmBsrBackward call{};
  call.dtype = kernel_dtype(kOp, x);
  call.allow_tf32 = tf32_permission();
  call.grad = dy.const_data_ptr();
  call.x = x_rows.const_data_ptr();
  call.values = kept.const_data_ptr();
  call.index = index;
  call.batch = x.size(0);
  call.grad_x = grad_x.mutable_data_ptr();
  call.grad_values = grad_values.mutable_data_ptr();
  call.grad_bias = with_bias ? grad_bias.mutable_data_ptr() : nullptr;
  launch_with_scratch(kOp, call, spmm_bsr_backward_scratch, spmm_bsr_backward, x, site);
  return {grad_x, grad_values, grad_bias};
}

}  // namespace
}  // namespace snipkern::cuda

SNIPKERN_CUDA_LIBRARY(m) {
  m.impl("sddmm_bsr", TORCH_BOX(&snipkern::cuda::sddmm_bsr_cuda));
  m.impl("spmm_bsr_backward", TORCH_BOX(&snipkern::cuda::spmm_bsr_backward_cuda));
}
