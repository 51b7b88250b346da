#include "cpu/spmm_csr.h"

#include "bindings/binding.h"
#include "bindings/csr_arguments.h"

namespace snipkern {
namespace {

Tensor spmm_csr_cpu(const Tensor& x, const Tensor& values, const std::optional<Tensor>& bias, const Tensor& topology,
                    int64_t rows, int64_t cols, bool transpose) {
  const SpmmCsrArguments arguments("spmm_csr", x, values, bias, topology, rows, cols, transpose);
  Tensor y = new_output(x, {x.size(0), arguments.outputs});
  spmm_csr(arguments.call<SpmmCsr>(y), run_tasks);
  return y;
}

}  // namespace
}  // namespace snipkern

STABLE_TORCH_LIBRARY_IMPL(snipkern, CPU, m) { m.impl("spmm_csr", TORCH_BOX(&snipkern::spmm_csr_cpu)); }
