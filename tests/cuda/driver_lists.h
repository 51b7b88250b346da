// A random mask of single weights.
#pragma once

#include "driver_layer.h"

namespace driver {

// A random mask as the lists of its rows and of its columns.
struct Lists {
  Entries entries;
  Memory ptr{0}, index{0}, transposed_ptr{0}, transposed_index{0}, order{0};

  // The second row is empty and the third one full.
  Lists(int64_t rows, int64_t cols, double density, Random& random) : entries{rows, cols, {}, {}} {
    std::vector<int32_t> begins{0}, transposed_begins(static_cast<size_t>(cols + 1)), numbers;
    std::vector<uint16_t> columns, list_rows;
    std::vector<std::vector<int32_t>> of_column(static_cast<size_t>(cols));
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t col = 0; col < cols; ++col) {
        const bool drawn = random.uniform() < density;
        if (row == 1 || (!drawn && row != 2)) continue;
        of_column[static_cast<size_t>(col)].push_back(static_cast<int32_t>(entries.nnz()));
        columns.push_back(static_cast<uint16_t>(col));
        entries.row_of.push_back(row);
        entries.col_of.push_back(col);
      }
      begins.push_back(static_cast<int32_t>(entries.nnz()));
    }
    for (int64_t col = 0; col < cols; ++col) {
      for (const int32_t k : of_column[static_cast<size_t>(col)]) {
        numbers.push_back(k);
        list_rows.push_back(static_cast<uint16_t>(entries.row_of[static_cast<size_t>(k)]));
      }
      transposed_begins[static_cast<size_t>(col + 1)] = static_cast<int32_t>(numbers.size());
    }
    ptr = copied(begins);
    index = copied(columns);
    transposed_ptr = copied(transposed_begins);
    transposed_index = copied(list_rows);
    order = copied(numbers);
  }
};

}  // namespace driver
