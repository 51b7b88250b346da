// 2-D convolution with a sparse weight on a GPU, zero padding, one group: forward, and the gradients of its input and
// of its kept weights. Images are read where they are.
#pragma once

#include <cstdint>

#include "cpu/conv_axis.h"
#include "cpu/dtype.h"
#include "cpu/index_list.h"
#include "cuda/platform.cuh"

namespace snipkern::cuda {

// The weight is seen as [out_channels, in_channels * kernel height * kernel width]. All tensors are contiguous, batch
// first, channels second. The pixels of an image, strides, paddings and dilated kernels are below 2^29.
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
  int64_t nnz;
  void* grad_x;
  void* scratch;  // conv2d_csr_input_grad_scratch() bytes, aligned to 16
};

struct Conv2dCsrWeightGrad {
  DType dtype;
  Conv2dShape shape;
  const void* grad;  // of y
  const void* x;
  const int32_t* ptr;  // [out_channels + 1]
  IndexList index;     // [nnz]
  int64_t nnz;
  void* values;   // [nnz]
  void* scratch;  // conv2d_csr_weight_grad_scratch() bytes, aligned to 16
};

// Room for the values in the order of the lists.
int64_t conv2d_csr_input_grad_scratch(const Conv2dCsrInputGrad& call);
// Room for partial sums where the positions are split.
int64_t conv2d_csr_weight_grad_scratch(const Conv2dCsrWeightGrad& call);

// Each output element is summed in one fixed order, in float (double for double): the same bits in every run. The lists
// are read on the device only.
cudaError_t conv2d_csr(const Conv2dCsr& call, cudaStream_t stream);
cudaError_t conv2d_csr_input_grad(const Conv2dCsrInputGrad& call, cudaStream_t stream);
cudaError_t conv2d_csr_weight_grad(const Conv2dCsrWeightGrad& call, cudaStream_t stream);

}  // namespace snipkern::cuda
