// A weight that keeps whole blocks, as the host describes it to kernels. See cpu/bsr.h for the order of its values.
#pragma once

#include <cstdint>

namespace snipkern::cuda {

// The arrays lie in device memory: the host never reads them, and derives `blocks` from the size of the tensor that
// packs them (bindings/cuda/block_view.h).
struct BlockIndex {
  const int32_t *start, *ptr;  // [block_rows + 1]: kept weights and blocks before each block row
  const int32_t* col;          // [blocks]: their block columns
  const int32_t* col_ptr;      // [block_cols + 1]: where each block column's list begins
  const int32_t *row, *order;  // [blocks] in that order: their block rows, their numbers in the order of `col`
  const int32_t *row_place, *col_place;  // [rows], [cols]: where in the grid the weight's lie; null: in their own order
  int32_t rows, cols;
  int32_t block_height, block_width;
  int32_t block_rows, block_cols;
  int64_t blocks, nnz;
};

}  // namespace snipkern::cuda
