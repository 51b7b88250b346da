#include "cpu/conv2d_bsr.h"

#include "cpu/conv_walk.h"

#define SNIPKERN_KERNEL "cpu/conv2d_bsr.kernel.h"
#include "cpu/foreach_tier.h"

namespace snipkern {

void conv2d_bsr(const Conv2dBsr& call, const TaskRunner& run) {
  switch (call.dtype) {
    case DType::kFloat:
      return SNIPKERN_DISPATCH(conv2d_bsr<float>, call, run);
    case DType::kDouble:
      return SNIPKERN_DISPATCH(conv2d_bsr<double>, call, run);
    case DType::kHalf:
      return SNIPKERN_DISPATCH(conv2d_bsr<Half>, call, run);
    case DType::kBFloat16:
      return SNIPKERN_DISPATCH(conv2d_bsr<BFloat16>, call, run);
  }
}

void conv2d_bsr_input_grad(const Conv2dBsrInputGrad& call, const TaskRunner& run) {
  switch (call.dtype) {
    case DType::kFloat:
      return SNIPKERN_DISPATCH(conv2d_bsr_input_grad<float>, call, run);
    case DType::kDouble:
      return SNIPKERN_DISPATCH(conv2d_bsr_input_grad<double>, call, run);
    case DType::kHalf:
      return SNIPKERN_DISPATCH(conv2d_bsr_input_grad<Half>, call, run);
    case DType::kBFloat16:
      return SNIPKERN_DISPATCH(conv2d_bsr_input_grad<BFloat16>, call, run);
  }
}

void conv2d_bsr_weight_grad(const Conv2dBsrWeightGrad& call, const TaskRunner& run) {
  switch (call.dtype) {
    case DType::kFloat:
      return SNIPKERN_DISPATCH(conv2d_bsr_weight_grad<float>, call, run);
    case DType::kDouble:
      return SNIPKERN_DISPATCH(conv2d_bsr_weight_grad<double>, call, run);
    case DType::kHalf:
      return SNIPKERN_DISPATCH(conv2d_bsr_weight_grad<Half>, call, run);
    case DType::kBFloat16:
      return SNIPKERN_DISPATCH(conv2d_bsr_weight_grad<BFloat16>, call, run);
  }
}

}  // namespace snipkern
