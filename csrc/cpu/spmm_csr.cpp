#include "cpu/spmm_csr.h"

#include "cpu/sddmm_csr.h"

#define SNIPKERN_KERNEL "cpu/sddmm_csr.kernel.h"
#include "cpu/foreach_tier.h"

namespace snipkern {

void spmm_csr(const SpmmCsr& call, const TaskRunner& run) {
  switch (call.dtype) {
    case DType::kFloat:
      return SNIPKERN_DISPATCH(spmm_csr<float>, call, run);
    case DType::kDouble:
      return SNIPKERN_DISPATCH(spmm_csr<double>, call, run);
    case DType::kHalf:
      return SNIPKERN_DISPATCH(spmm_csr<Half>, call, run);
    case DType::kBFloat16:
      return SNIPKERN_DISPATCH(spmm_csr<BFloat16>, call, run);
  }
}

void sddmm_csr(const SddmmCsr& call, const TaskRunner& run) {
  switch (call.dtype) {
    case DType::kFloat:
      return SNIPKERN_DISPATCH(sddmm_csr<float>, call, run);
    case DType::kDouble:
      return SNIPKERN_DISPATCH(sddmm_csr<double>, call, run);
    case DType::kHalf:
      return SNIPKERN_DISPATCH(sddmm_csr<Half>, call, run);
    case DType::kBFloat16:
      return SNIPKERN_DISPATCH(sddmm_csr<BFloat16>, call, run);
  }
}

void spmm_csr_backward(const SddmmCsr& value_grad, const SpmmCsr& input_grad, const TaskRunner& run) {
  switch (value_grad.dtype) {
    case DType::kFloat:
      return SNIPKERN_DISPATCH(spmm_csr_backward<float>, value_grad, input_grad, run);
    case DType::kDouble:
      return SNIPKERN_DISPATCH(spmm_csr_backward<double>, value_grad, input_grad, run);
    case DType::kHalf:
      return SNIPKERN_DISPATCH(spmm_csr_backward<Half>, value_grad, input_grad, run);
    case DType::kBFloat16:
      return SNIPKERN_DISPATCH(spmm_csr_backward<BFloat16>, value_grad, input_grad, run);
  }
}

}  // namespace snipkern
