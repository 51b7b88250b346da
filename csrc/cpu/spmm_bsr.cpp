#include "cpu/spmm_bsr.h"

#define SNIPKERN_KERNEL "cpu/sddmm_bsr.kernel.h"
#include "cpu/foreach_tier.h"

namespace snipkern {

void spmm_bsr(const SpmmBsr& call, const TaskRunner& run) {
  switch (call.dtype) {
    case DType::kFloat:
      return SNIPKERN_DISPATCH(spmm_bsr<float>, call, run);
    case DType::kDouble:
      return SNIPKERN_DISPATCH(spmm_bsr<double>, call, run);
    case DType::kHalf:
      return SNIPKERN_DISPATCH(spmm_bsr<Half>, call, run);
    case DType::kBFloat16:
      return SNIPKERN_DISPATCH(spmm_bsr<BFloat16>, call, run);
  }
}

void sddmm_bsr(const SddmmBsr& call, const TaskRunner& run) {
  switch (call.dtype) {
    case DType::kFloat:
      return SNIPKERN_DISPATCH(sddmm_bsr<float>, call, run);
    case DType::kDouble:
      return SNIPKERN_DISPATCH(sddmm_bsr<double>, call, run);
    case DType::kHalf:
      return SNIPKERN_DISPATCH(sddmm_bsr<Half>, call, run);
    case DType::kBFloat16:
      return SNIPKERN_DISPATCH(sddmm_bsr<BFloat16>, call, run);
  }
}

void spmm_bsr_backward(const SddmmBsr& value_grad, const SpmmBsr& input_grad, const TaskRunner& run) {
  switch (value_grad.dtype) {
    case DType::kFloat:
      return SNIPKERN_DISPATCH(spmm_bsr_backward<float>, value_grad, input_grad, run);
    case DType::kDouble:
      return SNIPKERN_DISPATCH(spmm_bsr_backward<double>, value_grad, input_grad, run);
    case DType::kHalf:
      return SNIPKERN_DISPATCH(spmm_bsr_backward<Half>, value_grad, input_grad, run);
    case DType::kBFloat16:
      return SNIPKERN_DISPATCH(spmm_bsr_backward<BFloat16>, value_grad, input_grad, run);
  }
}

}  // namespace snipkern
