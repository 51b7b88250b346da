// A linear layer with a sparse weight, and its products in double, for any order of kept weights.
#pragma once

#include "driver.h"

namespace driver {

// Rows and columns of the kept weights, in the order of their values.
struct Entries {
  int64_t rows, cols;
  std::vector<int64_t> row_of, col_of;

  int64_t nnz() const { return static_cast<int64_t>(row_of.size()); }
};

struct Layer {
  DType dtype;
  Entries mask;
  int64_t batch;
  Tensor x, grad, values, bias;

  Layer(DType dtype, const Entries& mask, int64_t batch, Random& random)
      : dtype(dtype),
        mask(mask),
        batch(batch),
        x(dtype, batch * mask.cols, random),
        grad(dtype, batch * mask.rows, random),
        values(dtype, mask.nnz(), random),
        bias(dtype, mask.rows, random) {}

  // x W^T + bias, or grad W.
  std::vector<Sum> product(bool transpose) const {
    const int64_t inputs = transpose ? mask.rows : mask.cols, outputs = transpose ? mask.cols : mask.rows;
    const Tensor& from = transpose ? grad : x;
    std::vector<Sum> sums(static_cast<size_t>(batch * outputs));
    for (int64_t sample = 0; sample < batch; ++sample) {
      Sum* const y = sums.data() + sample * outputs;
      for (int64_t out = 0; out < outputs && !transpose; ++out) y[out].add(bias.numbers[static_cast<size_t>(out)]);
      for (size_t k = 0; k < mask.row_of.size(); ++k) {
        const int64_t in = transpose ? mask.row_of[k] : mask.col_of[k],
                      out = transpose ? mask.col_of[k] : mask.row_of[k];
        y[out].add(from.numbers[static_cast<size_t>(sample * inputs + in)] * values.numbers[k]);
      }
    }
    return sums;
  }

  std::vector<Sum> value_gradient() const {
    std::vector<Sum> sums(mask.row_of.size());
    for (size_t k = 0; k < sums.size(); ++k) {
      for (int64_t sample = 0; sample < batch; ++sample) {
        sums[k].add(grad.numbers[static_cast<size_t>(sample * mask.rows + mask.row_of[k])] *
                    x.numbers[static_cast<size_t>(sample * mask.cols + mask.col_of[k])]);
      }
    }
    return sums;
  }

  std::vector<Sum> bias_gradient() const {
    std::vector<Sum> sums(static_cast<size_t>(mask.rows));
    for (size_t i = 0; i < grad.numbers.size(); ++i) sums[i % sums.size()].add(grad.numbers[i]);
    return sums;
  }
};

}  // namespace driver
