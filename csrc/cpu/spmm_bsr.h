// y = x W^T, or x W, for a W that keeps whole blocks: the forward of a linear layer and its input gradient. And both
// gradients at once.
#pragma once

#include <cstdint>

#include "cpu/bsr.h"
#include "cpu/dtype.h"
#include "cpu/memory.h"
#include "cpu/sddmm_bsr.h"
#include "cpu/tasks.h"

namespace snipkern {

struct SpmmBsr {
  DType dtype;
  const void* x;       // [batch, inputs], row-major
  const void* values;  // [nnz]
  const void* bias;    // [outputs] or null
  BsrIndex index;
  bool transpose;  // inputs are W's rows and outputs its columns
  int64_t batch;
  void* y;  // [batch, outputs], row-major

  const int32_t* input_place() const { return transpose ? index.row_place : index.col_place; }
  const int32_t* output_place() const { return transpose ? index.col_place : index.row_place; }
  int64_t inputs() const { return transpose ? index.rows : index.cols; }
  int64_t outputs() const { return transpose ? index.cols : index.rows; }
};

// Every output's sum has one order of its own, in float (double for double): the same bits for every thread count.
void spmm_bsr(const SpmmBsr& call, const TaskRunner& run);

// The gradients of a layer's values and bias (a = dy, b = x) and of its input (x = dy, y = dx, transposed): the same
// bits as two calls, but dy is packed once.
void spmm_bsr_backward(const SddmmBsr& value_grad, const SpmmBsr& input_grad, const TaskRunner& run);

}  // namespace snipkern
