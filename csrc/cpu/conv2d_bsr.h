// 2-D convolution with a weight that keeps whole blocks, zero padding, one
// group: forward, and the gradients of its input and of its kept weights.
#pragma once

#include <cstdint>

#include "cpu/bsr.h"
#include "cpu/conv_plan.h"
#include "cpu/dtype.h"
#include "cpu/memory.h"
#include "cpu/tasks.h"

namespace snipkern {

// The weight is seen as [out_channels, in_channels * kernel height * kernel
// width]; that view has the blocks. All tensors are contiguous, batch first,
// channels second.
struct Conv2dBsr {
  DType dtype;
  Conv2dShape shape;
  BsrIndex index;
  const void* x;
  const void* values;  // [nnz]
  const void* bias;    // [out_channels] or null
  void* y;
};

struct Conv2dBsrInputGrad {
  DType dtype;
  Conv2dShape shape;
  BsrIndex index;
  const void* grad;    // of y
  const void* values;  // [nnz]
  void* grad_x;
};

struct Conv2dBsrWeightGrad {
  DType dtype;
  Conv2dShape shape;
  BsrIndex index;
  const void* grad;  // of y
  const void* x;
  void* values;  // [nnz]
};

// Each output element is summed in one fixed order, in float (double for
// double): the same bits for every thread count.
void conv2d_bsr(const Conv2dBsr& call, const TaskRunner& run);
void conv2d_bsr_input_grad(const Conv2dBsrInputGrad& call, const TaskRunner& run);
void conv2d_bsr_weight_grad(const Conv2dBsrWeightGrad& call, const TaskRunner& run);

}  // namespace snipkern
