// Plain loops, which -O3 unrolls, and little to compile.
#pragma GCC optimize("O3")

#include "cpu/zero_pruned.h"

#define SNIPKERN_KERNEL "cpu/zero_pruned.kernel.h"
#include "cpu/foreach_tier.h"

namespace snipkern {

void zero_pruned(const ZeroPruned& call, const TaskRunner& run) {
  switch (call.element_bytes) {
    case 2:
      return SNIPKERN_DISPATCH(zero_pruned<int16_t>, call, run);
    case 4:
      return SNIPKERN_DISPATCH(zero_pruned<int32_t>, call, run);
    default:
      return SNIPKERN_DISPATCH(zero_pruned<int64_t>, call, run);
  }
}

}  // namespace snipkern
