// y = x W^T, or x W, for a W that keeps whole blocks: the forward of a linear layer and its input gradient.
#pragma once

#include "cpu/dtype.h"
#include "cuda/bsr.h"
#include "cuda/platform.cuh"
#include "cuda/scratch.h"

namespace snipkern::cuda {

struct SpmmBsr {
  DType dtype;
  bool allow_tf32;     // floats may be rounded to tf32 for tensor cores
  const void* x;       // [batch, inputs], row-major
  const void* values;  // [nnz]
  const void* bias;    // [outputs] or null
  BlockIndex index;
  bool transpose;  // inputs are W's rows and outputs its columns
  int64_t batch;
  void* y;        // [batch, outputs], row-major
  void* scratch;  // spmm_bsr_scratch() bytes, aligned to 16

  const int32_t* input_place() const { return transpose ? index.row_place : index.col_place; }
  const int32_t* output_place() const { return transpose ? index.col_place : index.row_place; }
  int32_t inputs() const { return transpose ? index.rows : index.cols; }
  int32_t outputs() const { return transpose ? index.cols : index.rows; }
};

// Sizes alone tell it, not the topology: a list (the columns of a block row, the rows of a block column) may be cut
// where it is longer than four average ones, and the sums of its parts are kept until they are joined. With orders also
// x and y in the grid's.
int64_t spmm_bsr_scratch(const SpmmBsr& call);

// Every output's sum has one order of its own, in float (double for double): the same bits in every run.
cudaError_t spmm_bsr(const SpmmBsr& call, cudaStream_t stream);

// The same where x, bias and y are in the grid's order, as for a weight without one; takes its own scratch memory, and
// does no more than that where `scratch` only counts.
cudaError_t spmm_bsr_on_grid(const SpmmBsr& call, Scratch& scratch, cudaStream_t stream);

}  // namespace snipkern::cuda
