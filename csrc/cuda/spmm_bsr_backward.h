// All gradients of y = x W^T + bias at once: with orders, the gradient of y is gathered once for both products.
#pragma once

#include "cpu/dtype.h"
#include "cuda/bsr.h"
#include "cuda/platform.cuh"

namespace snipkern::cuda {

struct SpmmBsrBackward {
  DType dtype;
  bool allow_tf32;
  const void* grad;    // of y: [batch, rows]
  const void* x;       // [batch, cols]
  const void* values;  // [nnz]
  BlockIndex index;
  int64_t batch;
  void* grad_x;       // [batch, cols]
  void* grad_values;  // [nnz]
  void* grad_bias;    // [rows] or null
  void* scratch;      // spmm_bsr_backward_scratch() bytes, aligned to 16
};

int64_t spmm_bsr_backward_scratch(const SpmmBsrBackward& call);

// The same bits as spmm_bsr() with transpose and sddmm_bsr().
cudaError_t spmm_bsr_backward(const SpmmBsrBackward& call, cudaStream_t stream);

}  // namespace snipkern::cuda
