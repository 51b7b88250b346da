// The two halves of spmm_csr, which spmm_csr_backward uses one by one: activations as [features][samples], and the
// product with such.
#pragma once

#include "cuda/spmm_csr.h"

namespace snipkern::cuda {

inline int element_size(DType dtype) { return dtype == DType::kDouble ? 8 : dtype == DType::kFloat ? 4 : 2; }

// Scratch memory is handed out in parts that are aligned as widely as any load wants it.
inline int64_t aligned_bytes(int64_t bytes) { return (bytes + 255) / 256 * 256; }

// Samples of a feature's row, padded. Whole 16-byte vectors, and whole cache lines where there is a full one, so that
// no vector straddles rows and no group of eight lanes straddles lines.
inline int64_t padded_samples(int64_t batch, int64_t element_size) {
  const int64_t line = 128 / element_size, vector = 16 / element_size;
  const int64_t unit = batch < line ? vector : line;
  return (batch + unit - 1) / unit * unit;
}

inline int64_t feature_major_bytes(DType dtype, int64_t batch, int64_t features) {
  return aligned_bytes((features + 1) * padded_samples(batch, element_size(dtype)) * element_size(dtype));
}

// [batch, features] to [features + 1][padded samples]; the padding and the last row are zeros.
void to_feature_major(DType dtype, const void* source, int64_t batch, int64_t features, void* target,
                      cudaStream_t stream);

// Room for the values in the order of the lists.
inline int64_t list_order_bytes(DType dtype, const int32_t* order, int64_t nnz) {
  return order == nullptr ? 0 : aligned_bytes(nnz * element_size(dtype));
}

// spmm_csr of an x that is [inputs + 1][padded samples]; `ordered` has list_order_bytes().
cudaError_t product_of_feature_major(const SpmmCsr& call, const void* x, void* ordered, cudaStream_t stream);

}  // namespace snipkern::cuda
