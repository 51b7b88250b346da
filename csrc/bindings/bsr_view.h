// A block topology tensor as the arrays that it packs.
#pragma once

#include "bindings/arguments.h"
#include "cpu/bsr.h"

namespace snipkern {

// index_sizes of snipkern/layout.py: what the size of an index tells of it.
struct IndexSizes {
  int64_t blocks;  // negative where no index has that size
  bool ordered;

  IndexSizes(int64_t words, const BsrIndex& grid) {
    const int64_t entries = words - (2 * grid.block_rows() + grid.block_cols() + 3);
    const int64_t lines = grid.rows + grid.cols;
    ordered = entries % 3 != 0;
    const int64_t lists = entries - (ordered ? lines + (lines % 3 == 0 ? 1 : lines % 3 == 1 ? 0 : 2) : 0);
    blocks = lists >= 0 && lists % 3 == 0 ? lists / 3 : -1;
  }
};

// The requirements of require_block_topology() in snipkern/ops/schema_bsr.py. An index that lies on another device is
// not read: `read` tells whether this one may be.
inline BsrIndex block_arrays(const char* op, const Tensor& topology, int64_t nnz, int64_t rows, int64_t cols,
                             int64_t block_height, int64_t block_width, bool read) {
  SNIPKERN_REQUIRE(block_height > 0 && block_width > 0, op, block_height << " x " << block_width,
                   "a block must not be empty");
  BsrIndex index{};
  index.rows = rows;
  index.cols = cols;
  index.block_height = block_height;
  index.block_width = block_width;
  const int64_t block_rows = index.block_rows(), block_cols = index.block_cols();
  const IndexSizes sizes(topology.numel(), index);
  const int64_t blocks = sizes.blocks;
  const bool readable =
      topology.scalar_type() == ScalarType::Int && topology.dim() == 1 && topology.is_contiguous() && blocks >= 0;
  const int32_t* words = readable ? topology.const_data_ptr<int32_t>() : nullptr;
  SNIPKERN_REQUIRE(readable && (!read || words[2 * block_rows + 1] == blocks) && blocks <= nnz &&
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
  if (sizes.ordered) {
    index.row_place = index.order + blocks;
    index.col_place = index.row_place + rows;
  }
  return index;
}

// The same for an index in this memory, which is read where that takes no time: its lists begin at 0 and end at their
// lengths. That they do not fall in between, and what rows and columns they name, is trusted.
inline BsrIndex block_index(const char* op, const Tensor& topology, int64_t nnz, int64_t rows, int64_t cols,
                            int64_t block_height, int64_t block_width) {
  const BsrIndex index = block_arrays(op, topology, nnz, rows, cols, block_height, block_width, true);
  SNIPKERN_REQUIRE(index.nnz() == nnz, op, index.nnz(), "topology must be of a mask with " << nnz << " kept weights");
  const int64_t blocks = index.ptr[index.block_rows()], last = index.col_ptr[index.block_cols()];
  SNIPKERN_REQUIRE(
      index.start[0] == 0 && index.ptr[0] == 0 && index.col_ptr[0] == 0 && last == blocks, op,
      index.ptr[0] << " to " << blocks << " and " << index.col_ptr[0] << " to " << last << ", kept weights from "
                   << index.start[0],
      "topology must count its blocks from 0 to " << blocks << ", by rows and by columns, and kept weights from 0");
  return index;
}

}  // namespace snipkern
