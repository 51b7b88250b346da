// The index of a weight that keeps whole blocks (snipkern/topology.py, BlockTopology), as kernels read it.
#pragma once

#include <algorithm>
#include <cstdint>

namespace snipkern {

// The kept weights are in row-major order of the grid: of the dense weight, or of it with its rows and columns in the
// grid's order. All rows of a block row keep the same columns, so a block row is a run of `run_length` values for each
// of its rows, and a block is a stretch of each of these runs.
struct BsrIndex {
  const int32_t *start, *ptr;  // [block rows + 1]: kept weights and blocks before each block row
  const int32_t* col;          // [blocks]: their block columns
  const int32_t* col_ptr;      // [block columns + 1]: where each block column's list begins
  const int32_t *row, *order;  // [blocks] in that order: their block rows, their numbers in the order of `col`
  const int32_t *row_place, *col_place;  // [rows], [cols]: where in the grid the weight's lie; null: in their own order
  int64_t rows, cols;
  int64_t block_height, block_width;

  int64_t block_rows() const { return (rows + block_height - 1) / block_height; }
  int64_t block_cols() const { return (cols + block_width - 1) / block_width; }
  int64_t nnz() const { return start[block_rows()]; }

  // Blocks on the far edges are smaller.
  int64_t height(int64_t block_row) const { return std::min(block_height, rows - block_row * block_height); }
  int64_t width(int64_t block_col) const { return std::min(block_width, cols - block_col * block_width); }

  // Kept columns of a block row.
  int64_t run_length(int64_t block_row) const {
    return static_cast<uint32_t>(start[block_row + 1] - start[block_row]) / static_cast<uint32_t>(height(block_row));
  }

  // Where the first row of a block begins in the values; its next row is run_length behind.
  int64_t position(int64_t block_row, int64_t block) const {
    return start[block_row] + (block - ptr[block_row]) * block_width;
  }
};

}  // namespace snipkern
