#include "cpu/conv2d_csr.h"

#include "cpu/conv_walk.h"

#define SNIPKERN_KERNEL "cpu/conv2d_csr.kernel.h"
#include "cpu/foreach_tier.h"

namespace snipkern {

void conv2d_csr(const Conv2dCsr& call, const TaskRunner& run) {
  switch (call.dtype) {
    case DType::kFloat:
      return SNIPKERN_DISPATCH(conv2d_csr<float>, call, run);
    case DType::kDouble:
      return SNIPKERN_DISPATCH(conv2d_csr<double>, call, run);
    case DType::kHalf:
      return SNIPKERN_DISPATCH(conv2d_csr<Half>, call, run);
    case DType::kBFloat16:
      return SNIPKERN_DISPATCH(conv2d_csr<BFloat16>, call, run);
  }
}

void conv2d_csr_input_grad(const Conv2dCsrInputGrad& call, const TaskRunner& run) {
  switch (call.dtype) {
    case DType::kFloat:
      return SNIPKERN_DISPATCH(conv2d_csr_input_grad<float>, call, run);
    case DType::kDouble:
      return SNIPKERN_DISPATCH(conv2d_csr_input_grad<double>, call, run);
    case DType::kHalf:
      return SNIPKERN_DISPATCH(conv2d_csr_input_grad<Half>, call, run);
    case DType::kBFloat16:
      return SNIPKERN_DISPATCH(conv2d_csr_input_grad<BFloat16>, call, run);
  }
}

void conv2d_csr_weight_grad(const Conv2dCsrWeightGrad& call, const TaskRunner& run) {
  switch (call.dtype) {
    case DType::kFloat:
      return SNIPKERN_DISPATCH(conv2d_csr_weight_grad<float>, call, run);
    case DType::kDouble:
      return SNIPKERN_DISPATCH(conv2d_csr_weight_grad<double>, call, run);
    case DType::kHalf:
      return SNIPKERN_DISPATCH(conv2d_csr_weight_grad<Half>, call, run);
    case DType::kBFloat16:
      return SNIPKERN_DISPATCH(conv2d_csr_weight_grad<BFloat16>, call, run);
  }
}

}  // namespace snipkern
