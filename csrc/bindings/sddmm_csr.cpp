#include "cpu/sddmm_csr.h"

#include <tuple>

#include "bindings/binding.h"
#include "bindings/csr_arguments.h"

namespace snipkern {
namespace {

Tensor sddmm_csr_cpu(const Tensor& a, const Tensor& b, const Tensor& topology, int64_t nnz, int64_t rows,
                     int64_t cols) {
  const SddmmCsrArguments arguments("sddmm_csr", a, b, topology, nnz, rows, cols);
  Tensor values = new_output(a, {nnz});
  sddmm_csr(arguments.call<SddmmCsr>(values), run_tasks);
  return values;
}

std::tuple<Tensor, Tensor, Tensor> spmm_csr_backward_cpu(const Tensor& grad, const Tensor& x, const Tensor& values,
                                                         const Tensor& topology, int64_t rows, int64_t cols,
                                                         bool with_bias) {
  const SpmmCsrBackwardArguments arguments("spmm_csr_backward", grad, x, values, topology, rows, cols, with_bias);
  Tensor grad_x = new_output(x, {x.size(0), cols});
  Tensor grad_values = new_output(x, {values.numel()});
  Tensor grad_bias = new_output(x, {with_bias ? rows : 0});
  spmm_csr_backward(arguments.value_grad<SddmmCsr>(grad_values, grad_bias), arguments.input_grad<SpmmCsr>(grad_x),
                    run_tasks);
  return {grad_x, grad_values, grad_bias};
}

}  // namespace
}  // namespace snipkern

STABLE_TORCH_LIBRARY_IMPL(snipkern, CPU, m) {
  m.impl("sddmm_csr", TORCH_BOX(&snipkern::sddmm_csr_cpu));
  m.impl("spmm_csr_backward", TORCH_BOX(&snipkern::spmm_csr_backward_cpu));
}
