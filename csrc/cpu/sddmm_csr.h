// The kept entries of a^T b: the gradient of a sparse weight, one dot product over the batch each. With it, the
// gradient of the bias.
#pragma once

#include <cstdint>

#include "cpu/dtype.h"
#include "cpu/index_list.h"
#include "cpu/memory.h"
#include "cpu/spmm_csr.h"
#include "cpu/tasks.h"

namespace snipkern {

struct SddmmCsr {
  DType dtype;
  const void* a;       // [batch, rows], row-major
  const void* b;       // [batch, cols], row-major
  const int32_t* ptr;  // [rows + 1]: where each row's list begins
  IndexList index;     // [nnz]: columns of each row
  int64_t batch, rows, cols;
  void* values;  // [nnz]: sum over the batch of a[:, row] * b[:, col]
  void* bias;    // [rows]: sum over the batch of a[:, row], or null
};

// Each dot product is summed in one fixed order: the same bits for every thread count.
void sddmm_csr(const SddmmCsr& call, const TaskRunner& run);

// All gradients of one layer, those of values and bias (a = dy, b = x) and the input gradient (x = dy, y = dx,
// transposed lists), as two calls would compute them, but dy is packed once.
void spmm_csr_backward(const SddmmCsr& value_grad, const SpmmCsr& input_grad, const TaskRunner& run);

}  // namespace snipkern
