// A block topology tensor as the arrays that it packs.
#pragma once

#include "bindings/binding.h"
#include "cpu/bsr.h"

namespace snipkern {

// The requirements of require_block_topology() in snipkern/ops/checks.py, and that the index is of `nnz` kept weights.
inline BsrIndex block_index(const char* op, const Tensor& topology, int64_t nnz, int64_t rows, int64_t cols,
                            int64_t block_height, int64_t block_width) {
  SNIPKERN_REQUIRE(block_height > 0 && block_width > 0, op, block_height << " x " << block_width,
                   "a block must not be empty");
  BsrIndex index{};
  index.rows = rows;
  index.cols = cols;
  index.block_height = block_height;
  index.block_width = block_width;
  const int64_t block_rows = index.block_rows(), block_cols = index.block_cols();
  const int64_t entries = topology.numel() - (2 * block_rows + block_cols + 3);
  const bool readable =
      topology.scalar_type() == ScalarType::Int && topology.dim() == 1 && topology.is_contiguous() && entries >= 0;
  const int32_t* words = readable ? topology.const_data_ptr<int32_t>() : nullptr;
  const int64_t blocks = readable ? words[2 * block_rows + 1] : 0, places = entries - 3 * blocks;
  SNIPKERN_REQUIRE(readable && blocks >= 0 && (places == 0 || places == rows + cols) && blocks <= nnz &&
                       (nnz == 0 || (nnz - 1) / block_height / block_width < blocks),
                   op, Sizes{topology} << " " << DTypeName{topology.scalar_type()},
                   "topology must be the int32 index of a " << rows << " x " << cols << " mask with " << nnz
                                                            << " kept weights in blocks of " << block_height << " x "
                                                            << block_width);
  index.start = words;
  index.ptr = index.start + block_rows + 1;
  index.col = index.ptr + block_rows + 1;
  index.col_ptr = index.col + blocks;
  index.row = index.col_ptr + block_cols + 1;
  index.order = index.row + blocks;
  if (places > 0) {
    index.row_place = index.order + blocks;
    index.col_place = index.row_place + rows;
  }
  SNIPKERN_REQUIRE(index.nnz() == nnz, op, index.nnz(), "topology must be of a mask with " << nnz << " kept weights");
  return index;
}

}  // namespace snipkern
