#include "cpu/spmm_bsr.h"

#define SNIPKERN_KERNEL "cpu/spmm_bsr.kernel.h"
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

}  // namespace snipkern
