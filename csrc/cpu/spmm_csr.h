// y = x W^T for a sparse W: the forward of a linear layer and, on the transposed index lists, its
// input gradient.
#pragma once

#include <cstdint>

#include "cpu/dtype.h"
#include "cpu/index_list.h"
#include "cpu/memory.h"
#include "cpu/tasks.h"

namespace snipkern {

struct SpmmCsr {
  DType dtype;
  const void* x;         // [batch, inputs], row-major
  const void* values;    // [nnz]
  const void* bias;      // [outputs] or null
  const int32_t* ptr;    // [outputs + 1]: where each output's list begins
  IndexList index;       // [nnz]: inputs of each output
  const int32_t* order;  // [nnz]: position in `values` of each list entry, or null for 0, 1, 2, ...
  int64_t batch, inputs, outputs;
  void* y;  // [batch, outputs], row-major
};

// Sums run over each output's list in an order of their own, in float (double for double): the same bits for every
// thread count.
void spmm_csr(const SpmmCsr& call, const TaskRunner& run);

}  // namespace snipkern
