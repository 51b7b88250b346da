// A block topology tensor in device memory as the arrays that it packs.
#pragma once

#include <algorithm>

#include "bindings/bsr_view.h"
#include "cuda/bsr.h"

namespace snipkern::cuda {

inline BlockIndex block_index(const char* op, const Tensor& topology, int64_t nnz, int64_t rows, int64_t cols,
                              int64_t block_height, int64_t block_width, const Tensor& like, const char* like_name) {
  const BsrIndex arrays = block_arrays(op, topology, nnz, rows, cols, block_height, block_width, false);
  require_same_device(op, "topology", topology, like, like_name);
  BlockIndex index{};
  index.start = arrays.start;
  index.ptr = arrays.ptr;
  index.col = arrays.col;
  index.col_ptr = arrays.col_ptr;
  index.row = arrays.row;
  index.order = arrays.order;
  index.row_place = arrays.row_place;
  index.col_place = arrays.col_place;
  index.rows = static_cast<int32_t>(rows);
  index.cols = static_cast<int32_t>(cols);
  // A block larger than the weight is the weight: kernels need not walk, nor count in 32 bits, what is not there.
  index.block_height = static_cast<int32_t>(std::clamp<int64_t>(rows, 1, block_height));
  index.block_width = static_cast<int32_t>(std::clamp<int64_t>(cols, 1, block_width));
  index.block_rows = static_cast<int32_t>(arrays.block_rows());
  index.block_cols = static_cast<int32_t>(arrays.block_cols());
  index.blocks = arrays.order - arrays.row;
  index.nnz = nnz;
  return index;
}

}  // namespace snipkern::cuda
