#include "cpu/spmm_csr.h"

#define SNIPKERN_KERNEL "cpu/spmm_csr.kernel.h"
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

}  // namespace snipkern
