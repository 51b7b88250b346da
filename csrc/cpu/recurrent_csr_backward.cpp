#include "cpu/recurrent_csr.h"

#define SNIPKERN_KERNEL "cpu/recurrent_csr_backward.kernel.h"
#include "cpu/foreach_tier.h"

namespace snipkern {

void recurrent_csr_backward(const RecurrentCsrBackward& call, const TaskRunner& run) {
  switch (call.forward.dtype) {
    case DType::kFloat:
      return SNIPKERN_DISPATCH(recurrent_csr_backward<float>, call, run);
    case DType::kDouble:
      return SNIPKERN_DISPATCH(recurrent_csr_backward<double>, call, run);
    case DType::kHalf:
      return SNIPKERN_DISPATCH(recurrent_csr_backward<Half>, call, run);
    case DType::kBFloat16:
      return SNIPKERN_DISPATCH(recurrent_csr_backward<BFloat16>, call, run);
  }
}

}  // namespace snipkern
