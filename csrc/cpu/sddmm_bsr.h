// The kept entries of a^T b where whole blocks are kept: the gradient of a block-sparse weight.
#pragma once

#include <cstdint>

#include "cpu/bsr.h"
#include "cpu/dtype.h"
#include "cpu/memory.h"
#include "cpu/tasks.h"

namespace snipkern {

struct SddmmBsr {
  DType dtype;
  const void* a;  // [batch, rows], row-major
  const void* b;  // [batch, cols], row-major
  BsrIndex index;
  int64_t batch;
  void* values;  // [nnz]: sum over the batch of a[:, row] * b[:, col]
  void* bias;    // [rows]: sum over the batch of a[:, row], or null
};

// Each dot product is summed in one fixed order: the same bits for every thread count.
void sddmm_bsr(const SddmmBsr& call, const TaskRunner& run);

}  // namespace snipkern
