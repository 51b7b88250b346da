// A random mask of whole blocks.
#pragma once

#include <algorithm>
#include <numeric>

#include "cuda/bsr.h"
#include "driver_layer.h"

namespace driver {

using snipkern::cuda::BlockIndex;

// A random mask of whole blocks as the arrays of snipkern/topology/block.py. The second block row is empty and the
// third one full. With orders, the weight's row r lies in the grid's row row_place[r], and its columns likewise.
struct Blocks {
  Entries entries;
  BlockIndex index{};
  Memory start{0}, ptr{0}, col{0}, col_ptr{0}, row{0}, order{0}, row_place{0}, col_place{0};

  Blocks(int32_t rows, int32_t cols, int32_t height, int32_t width, bool ordered, Random& random)
      : entries{rows, cols, {}, {}} {
    const int32_t block_rows = (rows + height - 1) / height, block_cols = (cols + width - 1) / width;
    const std::vector<int32_t> row_order = places(rows, ordered, random, row_place);
    const std::vector<int32_t> col_order = places(cols, ordered, random, col_place);
    std::vector<int32_t> starts{0}, begins{0}, columns, col_begins{0}, list_rows, numbers;
    std::vector<std::vector<int32_t>> of_column(static_cast<size_t>(block_cols)), rows_of_column(of_column);
    for (int32_t block_row = 0; block_row < block_rows; ++block_row) {
      std::vector<int32_t> kept;  // columns of the grid
      for (int32_t block_col = 0; block_col < block_cols; ++block_col) {
        const bool drawn = random.uniform() < 0.4;
        if (block_row == 1 || (!drawn && block_row != 2)) continue;
        of_column[static_cast<size_t>(block_col)].push_back(static_cast<int32_t>(columns.size()));
        rows_of_column[static_cast<size_t>(block_col)].push_back(block_row);
        columns.push_back(block_col);
        for (int32_t k = block_col * width; k < std::min(cols, (block_col + 1) * width); ++k) kept.push_back(k);
      }
      for (int32_t place = block_row * height; place < std::min(rows, (block_row + 1) * height); ++place) {
        for (const int32_t k : kept) {
          entries.row_of.push_back(row_order[static_cast<size_t>(place)]);
          entries.col_of.push_back(col_order[static_cast<size_t>(k)]);
        }
      }
      starts.push_back(static_cast<int32_t>(entries.nnz()));
      begins.push_back(static_cast<int32_t>(columns.size()));
    }
    for (size_t block_col = 0; block_col < of_column.size(); ++block_col) {
      numbers.insert(numbers.end(), of_column[block_col].begin(), of_column[block_col].end());
      list_rows.insert(list_rows.end(), rows_of_column[block_col].begin(), rows_of_column[block_col].end());
      col_begins.push_back(static_cast<int32_t>(numbers.size()));
    }
    index.start = (start = copied(starts)).as<int32_t>();
    index.ptr = (ptr = copied(begins)).as<int32_t>();
    index.col = (col = copied(columns)).as<int32_t>();
    index.col_ptr = (col_ptr = copied(col_begins)).as<int32_t>();
    index.row = (row = copied(list_rows)).as<int32_t>();
    index.order = (order = copied(numbers)).as<int32_t>();
    index.row_place = ordered ? row_place.as<int32_t>() : nullptr;
    index.col_place = ordered ? col_place.as<int32_t>() : nullptr;
    index.rows = rows;
    index.cols = cols;
    index.block_height = height;
    index.block_width = width;
    index.block_rows = block_rows;
    index.block_cols = block_cols;
    index.blocks = static_cast<int64_t>(columns.size());
    index.nnz = entries.nnz();
  }

  // Which row or column of the weight lies in each place of the grid; the inverse goes to `place`.
  static std::vector<int32_t> places(int32_t size, bool ordered, Random& random, Memory& place) {
    std::vector<int32_t> order(static_cast<size_t>(size)), inverse(order);
    std::iota(order.begin(), order.end(), 0);
    for (size_t i = order.size(); ordered && i > 1; --i) std::swap(order[i - 1], order[random.bits() % i]);
    for (size_t i = 0; i < order.size(); ++i) inverse[static_cast<size_t>(order[i])] = static_cast<int32_t>(i);
    place = copied(inverse);
    return order;
  }
};

}  // namespace driver
