#include "cpu/recurrent_csr.h"

#define SNIPKERN_KERNEL "cpu/recurrent_csr.kernel.h"
#include "cpu/foreach_tier.h"

namespace snipkern {

void recurrent_csr(const RecurrentCsr& call, const TaskRunner& run) {
  switch (call.dtype) {
    case DType::kFloat:
      return SNIPKERN_DISPATCH(recurrent_csr<float>, call, run);
    case DType::kDouble:
      return SNIPKERN_DISPATCH(recurrent_csr<double>, call, run);
    case DType::kHalf:
      return SNIPKERN_DISPATCH(recurrent_csr<Half>, call, run);
    case DType::kBFloat16:
      return SNIPKERN_DISPATCH(recurrent_csr<BFloat16>, call, run);
  }
}

}  // namespace snipkern
