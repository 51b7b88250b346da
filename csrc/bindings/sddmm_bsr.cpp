#include "cpu/sddmm_bsr.h"

#include "bindings/bsr_view.h"

namespace snipkern {
namespace {

Tensor sddmm_bsr_cpu(const Tensor& a, const Tensor& b, const Tensor& topology, int64_t nnz, int64_t rows, int64_t cols,
                     int64_t block_height, int64_t block_width) {
  constexpr const char* kOp = "sddmm_bsr";
  require_float(kOp, "a", a);
  SNIPKERN_REQUIRE(a.dim() == 2 && a.size(1) == rows, kOp, Sizes{a}, "a must be [batch, " << rows << "]");
  SNIPKERN_REQUIRE(b.dim() == 2 && b.size(1) == cols && b.size(0) == a.size(0), kOp, Sizes{b},
                   "b must be [" << a.size(0) << ", " << cols << "]");
  require_like(kOp, "b", b, a, "a");
  const BsrIndex index = block_index(kOp, topology, nnz, rows, cols, block_height, block_width);
  const Tensor left = as_contiguous(a), right = as_contiguous(b);
  Tensor values = torch::stable::new_empty(a, {nnz});
  SddmmBsr call{};
  call.dtype = kernel_dtype(kOp, a);
  call.a = left.const_data_ptr();
  call.b = right.const_data_ptr();
  call.index = index;
  call.batch = a.size(0);
  call.values = values.mutable_data_ptr();
  sddmm_bsr(call, run_tasks);
  return values;
}

}  // namespace
}  // namespace snipkern

STABLE_TORCH_LIBRARY_IMPL(snipkern, CPU, m) { m.impl("sddmm_bsr", TORCH_BOX(&snipkern::sddmm_bsr_cpu)); }
