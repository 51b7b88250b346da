// 2-D convolution with a weight that keeps whole blocks, zero padding, one group: forward, and the gradients of its
// input and of its kept weights. The products are those of linear layers, whose samples are output pixels and whose
// inputs are patches: elements of a patch are gathered from the image while tiles are loaded.
#pragma once

#include "cpu/conv_axis.h"
#include "cpu/dtype.h"
#include "cuda/bsr.h"
#include "cuda/platform.cuh"
#include "cuda/scratch.h"

namespace snipkern::cuda {

// The weight is seen as [out_channels, in_channels * kernel height * kernel width]; that view has the blocks, in its
// own order. All tensors are contiguous, batch first, channels second. The pixels of an image, strides, paddings and
// dilated kernels are below 2^29.
struct Conv2dBsr {
  DType dtype;
  bool allow_tf32;  // floats may be rounded to tf32 for tensor cores
  Conv2dShape shape;
  BlockIndex index;
  const void* x;
  const void* values;  // [nnz]
  const void* bias;    // [out_channels] or null
  void* y;
  void* scratch;  // conv2d_bsr_scratch() bytes, aligned to 16
};

struct Conv2dBsrInputGrad {
  DType dtype;
  bool allow_tf32;
  Conv2dShape shape;
  BlockIndex index;
  const void* grad;    // of y
  const void* values;  // [nnz]
  void* grad_x;
  void* scratch;  // conv2d_bsr_input_grad_scratch() bytes, aligned to 16
};

struct Conv2dBsrWeightGrad {
  DType dtype;
  bool allow_tf32;
  Conv2dShape shape;
  BlockIndex index;
  const void* grad;  // of y
  const void* x;
  void* values;   // [nnz]
  void* scratch;  // conv2d_bsr_weight_grad_scratch() bytes, aligned to 16
};

int64_t conv2d_bsr_scratch(const Conv2dBsr& call);
int64_t conv2d_bsr_input_grad_scratch(const Conv2dBsrInputGrad& call);
int64_t conv2d_bsr_weight_grad_scratch(const Conv2dBsrWeightGrad& call);

// Every sum has one order of its own, in float (double for double): the same bits in every run.
cudaError_t conv2d_bsr(const Conv2dBsr& call, cudaStream_t stream);
cudaError_t conv2d_bsr_input_grad(const Conv2dBsrInputGrad& call, cudaStream_t stream);
cudaError_t conv2d_bsr_weight_grad(const Conv2dBsrWeightGrad& call, cudaStream_t stream);

}  // namespace snipkern::cuda
