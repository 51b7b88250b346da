// Arguments of an op as kernels take them, on any device: dtypes, contiguity, a topology tensor as five arrays.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "bindings/checks.h"
#include "cpu/dtype.h"
#include "cpu/index_list.h"

namespace snipkern {

// The kernels' dtype, of a tensor that passed require_float().
inline DType kernel_dtype(const char* op, const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return DType::kFloat;
    case ScalarType::Double:
      return DType::kDouble;
    case ScalarType::Half:
      return DType::kHalf;
    case ScalarType::BFloat16:
      return DType::kBFloat16;
    default:
      throw std::logic_error(std::string(op) + ": no kernel for this dtype");
  }
}

// Expanded and transposed tensors reach kernels as they come: stride-0 gradients of sum(), for one.
inline Tensor as_contiguous(const Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

// The five index arrays that a topology tensor packs (snipkern/topology.py). Where it lies on the CPU, both lists must
// begin at 0 and end at `nnz`, or kernels would read beyond all arrays. Nothing else of it is looked at: that lists do
// not fall in between, and rows, columns and the order of the transposed values, are trusted. Looking would take as
// long as a product of one sample, and on another device wait for it.
struct TopologyView {
  const int32_t *ptr, *transposed_ptr;  // of the rows [rows + 1], of the columns [cols + 1]
  IndexList index, transposed_index;    // columns of each row, rows of each column: [nnz]
  const int32_t* transposed_order;      // [nnz]

  TopologyView(const char* op, const Tensor& topology, int64_t nnz, int64_t rows, int64_t cols) {
    require_topology(op, topology, nnz, rows, cols);
    ptr = topology.const_data_ptr<int32_t>();
    index = {ptr + rows + 1, fits_16_bits(cols)};
    transposed_ptr = ptr + rows + 1 + index_words(nnz, cols);
    transposed_index = {transposed_ptr + cols + 1, fits_16_bits(rows)};
    transposed_order = transposed_ptr + cols + 1 + index_words(nnz, rows);
    if (!topology.is_cpu()) return;
    SNIPKERN_REQUIRE(ptr[0] == 0 && ptr[rows] == nnz && transposed_ptr[0] == 0 && transposed_ptr[cols] == nnz, op,
                     ptr[0] << " to " << ptr[rows] << " and " << transposed_ptr[0] << " to " << transposed_ptr[cols],
                     "topology must count its kept weights from 0 to " << nnz << ", by rows and by columns");
  }
};

}  // namespace snipkern
