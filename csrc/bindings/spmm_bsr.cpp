#include "cpu/spmm_bsr.h"

#include "bindings/binding.h"
#include "bindings/bsr_view.h"
#include "bindings/product_checks.h"

namespace snipkern {
namespace {

Tensor spmm_bsr_cpu(const Tensor& x, const Tensor& values, const std::optional<Tensor>& bias, const Tensor& topology,
                    int64_t rows, int64_t cols, int64_t block_height, int64_t block_width, bool transpose) {
  constexpr const char* kOp = "spmm_bsr";
  const int64_t inputs = transpose ? rows : cols, outputs = transpose ? cols : rows;
  require_product(kOp, x, values, bias, inputs, outputs);
  const BsrIndex index = block_index(kOp, topology, values.numel(), rows, cols, block_height, block_width);
  const Tensor x_rows = as_contiguous(x), kept = as_contiguous(values);
  const Tensor offsets = bias.has_value() ? as_contiguous(*bias) : Tensor();
  Tensor y = new_output(x, {x.size(0), outputs});
  SpmmBsr call{};
  call.dtype = kernel_dtype(kOp, x);
  call.x = x_rows.const_data_ptr();
  call.values = kept.const_data_ptr();
  call.bias = bias.has_value() ? offsets.const_data_ptr() : nullptr;
  call.index = index;
  call.transpose = transpose;
  call.batch = x.size(0);
  call.y = y.mutable_data_ptr();
  spmm_bsr(call, run_tasks);
  return y;
}

}  // namespace
}  // namespace snipkern

STABLE_TORCH_LIBRARY_IMPL(snipkern, CPU, m) { m.impl("spmm_bsr", TORCH_BOX(&snipkern::spmm_bsr_cpu)); }
