// The kept entries of a^T b on a GPU: the gradient of a sparse weight, one dot product over the batch each. With it,
// the gradient of the bias.
#pragma once

#include "cuda/spmm_csr.h"

namespace snipkern::cuda {

struct SddmmCsr {
  DType dtype;
  const void* a;       // [batch, rows], row-major
  const void* b;       // [batch, cols], row-major
  const int32_t* ptr;  // [rows + 1]: where each row's list begins
  IndexList index;     // [nnz]: columns of each row
  int64_t nnz, batch, rows, cols;
  void* values;   // [nnz]: sum over the batch of a[:, row] * b[:, col]
  void* bias;     // [rows]: sum over the batch of a[:, row], or null
  void* scratch;  // sddmm_csr_scratch() bytes, aligned to 16
};

// Room for a and b as [features][samples], and for partial sums where the batch is split.
int64_t sddmm_csr_scratch(const SddmmCsr& call);

cudaError_t sddmm_csr(const SddmmCsr& call, cudaStream_t stream);

// All gradients of one layer, those of values and bias (a = dy, b = x) and the input gradient (x = dy, y = dx,
// transposed lists): the same bits as two calls, but dy is brought to [features][samples] once. `value_grad.scratch`
// holds spmm_csr_backward_scratch() bytes; that of the input gradient is not used.
int64_t spmm_csr_backward_scratch(const SddmmCsr& value_grad, const SpmmCsr& input_grad);
cudaError_t spmm_csr_backward(const SddmmCsr& value_grad, const SpmmCsr& input_grad, cudaStream_t stream);

}  // namespace snipkern::cuda
