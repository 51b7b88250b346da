// y = x W^T for a sparse W on a GPU: the forward of a linear layer and, on the transposed index lists, its input
// gradient.
#pragma once

#include <cstdint>

#include "cpu/dtype.h"
#include "cpu/index_list.h"
#include "cuda/platform.cuh"

namespace snipkern::cuda {

struct SpmmCsr {
  DType dtype;
  const void* x;         // [batch, inputs], row-major
  const void* values;    // [nnz]
  const void* bias;      // [outputs] or null
  const int32_t* ptr;    // [outputs + 1]: where each output's list begins
  IndexList index;       // [nnz]: inputs of each output
  const int32_t* order;  // [nnz]: position in `values` of each list entry, or null for 0, 1, 2, ...
  int64_t nnz, batch, inputs, outputs;
  void* y;        // [batch, outputs], row-major
  void* scratch;  // spmm_csr_scratch() bytes, aligned to 16
};

// Room for x as [inputs][samples] and, with an order, for the values in it.
int64_t spmm_csr_scratch(const SpmmCsr& call);

// Sums are in float (double for double), in an order that follows from the lists and the sizes: the same bits in every
// run. Reads the lists on the device only.
cudaError_t spmm_csr(const SpmmCsr& call, cudaStream_t stream);

}  // namespace snipkern::cuda
