#include "cuda/sddmm_csr.h"

#include <tuple>

#include "bindings/csr_arguments.h"
#include "bindings/cuda/binding.h"

namespace snipkern::cuda {
namespace {

Tensor sddmm_csr_cuda(const Tensor& a, const Tensor& b, const Tensor& topology, int64_t nnz, int64_t rows,
                      int64_t cols) {
  constexpr const char* kOp = "sddmm_csr";
  const SddmmCsrArguments arguments(kOp, a, b, topology, nnz, rows, cols);
  require_same_device(kOp, "topology", topology, a, "a");
  const CallSite site(a);
  Tensor values = new_output(a, {nnz});
  SddmmCsr call = arguments.call<SddmmCsr>(values);
  call.nnz = nnz;
  launch_with_scratch(kOp, call, sddmm_csr_scratch, sddmm_csr, a, site);
  return values;
}

std::tuple<Tensor, Tensor, Tensor> spmm_csr_backward_cuda(const Tensor& grad, const Tensor& x, const Tensor& values,
                                                          const Tensor& topology, int64_t rows, int64_t cols,
                                                          bool with_bias) {
  constexpr const char* kOp = "spmm_csr_backward";
  const SpmmCsrBackwardArguments arguments(kOp, grad, x, values, topology, rows, cols, with_bias);
  require_same_device(kOp, "topology", topology, x, "x");
  const CallSite site(x);
  Tensor grad_x = new_output(x, {x.size(0), cols});
  Tensor grad_values = new_output(x, {values.numel()});
  Tensor grad_bias = new_output(x, {with_bias ? rows : 0});
  SddmmCsr value_grad = arguments.value_grad<SddmmCsr>(grad_values, grad_bias);
  SpmmCsr input_grad = arguments.input_grad<SpmmCsr>(grad_x);
  value_grad.nnz = input_grad.nnz = values.numel();
  Tensor scratch = new_scratch(x, spmm_csr_backward_scratch(value_grad, input_grad));
  value_grad.scratch = scratch.mutable_data_ptr();
  require_launched(kOp, spmm_csr_backward(value_grad, input_grad, site.stream()));
  return {grad_x, grad_values, grad_bias};
}

}  // namespace
}  // namespace snipkern::cuda

SNIPKERN_CUDA_LIBRARY(m) {
  m.impl("sddmm_csr", TORCH_BOX(&snipkern::cuda::sddmm_csr_cuda));
  m.impl("spmm_csr_backward", TORCH_BOX(&snipkern::cuda::spmm_csr_backward_cuda));
}
