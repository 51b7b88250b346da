// The kept entries of a^T b where whole blocks are kept: the gradient of a block-sparse weight, and of the bias.
#pragma once

#include "cpu/dtype.h"
#include "cuda/bsr.h"
#include "cuda/platform.cuh"
#include "cuda/scratch.h"

namespace snipkern::cuda {

struct SddmmBsr {
  DType dtype;
  bool allow_tf32;  // floats may be rounded to tf32 for tensor cores
  const void* a;    // [batch, rows], row-major
  const void* b;    // [batch, cols], row-major
  BlockIndex index;
  int64_t batch;
  void* values;   // [nnz]: sum over the batch of a[:, row] * b[:, col]
  void* scratch;  // sddmm_bsr_scratch() bytes, aligned to 16
};

// Sizes alone tell it: few blocks and many samples are cut along the samples, and the sums of the parts kept until they
// are joined. With orders also a and b in the grid's.
int64_t sddmm_bsr_scratch(const SddmmBsr& call);

// Every sum has one order of its own, in float (double for double): the same bits in every run.
cudaError_t sddmm_bsr(const SddmmBsr& call, cudaStream_t stream);

// The same where a and b are in the grid's order; see spmm_bsr_on_grid().
cudaError_t sddmm_bsr_on_grid(const SddmmBsr& call, Scratch& scratch, cudaStream_t stream);

// sums[f] = sum over the batch of x[:, f], for x [batch, features].
struct FeatureSums {
  DType dtype;
  const void* x;
  int64_t batch;
  int32_t features;
  void* sums;  // [features], of x's dtype
};
cudaError_t feature_sums(const FeatureSums& call, Scratch& scratch, cudaStream_t stream);

}  // namespace snipkern::cuda
