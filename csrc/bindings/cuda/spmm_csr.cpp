#include "cuda/spmm_csr.h"

#include "bindings/csr_arguments.h"
#include "bindings/cuda/binding.h"

namespace snipkern::cuda {
namespace {

Tensor spmm_csr_cuda(const Tensor& x, const Tensor& values, const std::optional<Tensor>& bias, const Tensor& topology,
                     int64_t rows, int64_t cols, bool transpose) {
  constexpr const char* kOp = "spmm_csr";
  const SpmmCsrArguments arguments(kOp, x, values, bias, topology, rows, cols, transpose);
  require_same_device(kOp, "topology", topology, x, "x");
  const CallSite site(x);
  Tensor y = new_output(x, {x.size(0), arguments.outputs});
  SpmmCsr call = arguments.call<SpmmCsr>(y);
  call.nnz = values.numel();
  launch_with_scratch(kOp, call, spmm_csr_scratch, spmm_csr, x, site);
  return y;
}

}  // namespace
}  // namespace snipkern::cuda

SNIPKERN_CUDA_LIBRARY(m) { m.impl("spmm_csr", TORCH_BOX(&snipkern::cuda::spmm_csr_cuda)); }
