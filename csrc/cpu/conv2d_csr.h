// 2-D convolution with a sparse weight, zero padding, one group: forward, and
// the gradients of its input and of its kept weights.
#pragma once

#include <cstdint>

#include "cpu/conv_plan.h"
#include "cpu/dtype.h"
#include "cpu/index_list.h"
#include "cpu/memory.h"
#include "cpu/tasks.h"

namespace snipkern {

// The weight is seen as [out_channels, in_channels * kernel height * kernel
// width]. All tensors are contiguous, batch first, channels second.
struct Conv2dCsr {
  DType dtype;
  Conv2dShape shape;
  const void* x;
  const void* values;  // [nnz]
  const void* bias;    // [out_channels] or null
  const int32_t* ptr;  // [out_channels + 1]: where each row's list begins
  IndexList index;     // [nnz]: columns of each row
  void* y;
};

struct Conv2dCsrInputGrad {
  DType dtype;
  Conv2dShape shape;
  const void* grad;      // of y
  const void* values;    // [nnz]
  const int32_t* ptr;    // [columns + 1]: where each column's list begins
  IndexList index;       // [nnz]: rows of each column
  const int32_t* order;  // [nnz]: position in `values` of each list entry
  void* grad_x;
};

struct Conv2dCsrWeightGrad {
  DType dtype;
  Conv2dShape shape;
  const void* grad;  // of y
  const void* x;
  const int32_t* ptr;  // [out_channels + 1]
  IndexList index;     // [nnz]
  void* values;        // [nnz]
};

// Each output element is summed in one fixed order, in float (double for
// double): the same bits for every thread count.
void conv2d_csr(const Conv2dCsr& call, const TaskRunner& run);
void conv2d_csr_input_grad(const Conv2dCsrInputGrad& call, const TaskRunner& run);
void conv2d_csr_weight_grad(const Conv2dCsrWeightGrad& call, const TaskRunner& run);

}  // namespace snipkern
