#include "cpu/spmm_csr.h"

#include "bindings/binding.h"

namespace snipkern {
namespace {

Tensor spmm_csr_cpu(const Tensor& x, const Tensor& values, const std::optional<Tensor>& bias, const Tensor& topology,
                    int64_t rows, int64_t cols, bool transpose) {
  constexpr const char* kOp = "spmm_csr";
  const int64_t inputs = transpose ? rows : cols, outputs = transpose ? cols : rows;
  require_float(kOp, "x", x);
  SNIPKERN_REQUIRE(x.dim() == 2 && x.size(1) == inputs, kOp, Sizes{x}, "x must be [batch, " << inputs << "]");
  require_values(kOp, values, x, "x");
  require_bias(kOp, bias, outputs, x);
  const TopologyView view(kOp, topology, values.numel(), rows, cols);
  const Tensor x_rows = as_contiguous(x), kept = as_contiguous(values);
  const Tensor offsets = bias.has_value() ? as_contiguous(*bias) : Tensor();
  Tensor y = new_output(x, {x.size(0), outputs});
  SpmmCsr call{};
  call.dtype = kernel_dtype(kOp, x);
  call.x = x_rows.const_data_ptr();
  call.values = kept.const_data_ptr();
  call.bias = bias.has_value() ? offsets.const_data_ptr() : nullptr;
  call.ptr = transpose ? view.transposed_ptr : view.ptr;
  call.index = transpose ? view.transposed_index : view.index;
  call.order = transpose ? view.transposed_order : nullptr;
  call.batch = x.size(0);
  call.inputs = inputs;
  call.outputs = outputs;
  call.y = y.mutable_data_ptr();
  spmm_csr(call, run_tasks);
  return y;
}

}  // namespace
}  // namespace snipkern

STABLE_TORCH_LIBRARY_IMPL(snipkern, CPU, m) { m.impl("spmm_csr", TORCH_BOX(&snipkern::spmm_csr_cpu)); }
