// Products with single weights and their gradients.
#include "cuda/sddmm_csr.h"
#include "cuda/spmm_csr.h"
#include "driver.h"

namespace driver {
namespace {

using namespace snipkern::cuda;

// A random mask as the lists of its rows and of its columns.
struct Mask {
  int64_t rows, cols, nnz = 0;
  std::vector<int64_t> row_of, col_of;  // [nnz]
  Memory ptr{0}, index{0}, transposed_ptr{0}, transposed_index{0}, order{0};

  // The second row is empty and the third one full.
  Mask(int64_t rows, int64_t cols, double density, Random& random) : rows(rows), cols(cols) {
    std::vector<int32_t> begins{0}, transposed_begins(static_cast<size_t>(cols + 1)), numbers;
    std::vector<uint16_t> columns, list_rows;
    std::vector<std::vector<int32_t>> of_column(static_cast<size_t>(cols));
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t col = 0; col < cols; ++col) {
        const bool drawn = random.uniform() < density;
        if (row == 1 || (!drawn && row != 2)) continue;
        of_column[static_cast<size_t>(col)].push_back(static_cast<int32_t>(nnz++));
        columns.push_back(static_cast<uint16_t>(col));
        row_of.push_back(row);
        col_of.push_back(col);
      }
      begins.push_back(static_cast<int32_t>(nnz));
    }
    for (int64_t col = 0; col < cols; ++col) {
      for (const int32_t k : of_column[static_cast<size_t>(col)]) {
        numbers.push_back(k);
        list_rows.push_back(static_cast<uint16_t>(row_of[static_cast<size_t>(k)]));
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

struct Layer {
  DType dtype;
  const Mask& mask;
  int64_t batch;
  Tensor x, grad, values, bias;

  Layer(DType dtype, const Mask& mask, int64_t batch, Random& random)
      : dtype(dtype),
        mask(mask),
        batch(batch),
        x(dtype, batch * mask.cols, random),
        grad(dtype, batch * mask.rows, random),
        values(dtype, mask.nnz, random),
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

  SpmmCsr product_call(bool transpose, Tensor& y) const {
    SpmmCsr call{};
    call.dtype = dtype;
    call.x = (transpose ? grad : x).memory.get();
    call.values = values.memory.get();
    call.bias = transpose ? nullptr : bias.memory.get();
    call.ptr = (transpose ? mask.transposed_ptr : mask.ptr).as<int32_t>();
    call.index = {(transpose ? mask.transposed_index : mask.index).get(), true};
    call.order = transpose ? mask.order.as<int32_t>() : nullptr;
    call.nnz = mask.nnz;
    call.batch = batch;
    call.inputs = transpose ? mask.rows : mask.cols;
    call.outputs = transpose ? mask.cols : mask.rows;
    call.y = y.memory.get();
    return call;
  }

  SddmmCsr gradient_call(Tensor& grad_values, Tensor* grad_bias) const {
    SddmmCsr call{};
    call.dtype = dtype;
    call.a = grad.memory.get();
    call.b = x.memory.get();
    call.ptr = mask.ptr.as<int32_t>();
    call.index = {mask.index.get(), true};
    call.nnz = mask.nnz;
    call.batch = batch;
    call.rows = mask.rows;
    call.cols = mask.cols;
    call.values = grad_values.memory.get();
    call.bias = grad_bias == nullptr ? nullptr : grad_bias->memory.get();
    return call;
  }
};

void check(const std::string& name, const Layer& layer) {
  for (const bool transpose : {false, true}) {
    Tensor y(layer.dtype, layer.batch * (transpose ? layer.mask.cols : layer.mask.rows));
    SpmmCsr call = layer.product_call(transpose, y);
    const Memory scratch(spmm_csr_scratch(call));
    call.scratch = scratch.get();
    require_success(name, spmm_csr(call, nullptr));
    require_close(name + (transpose ? ": spmm_csr, transposed" : ": spmm_csr"), y, layer.product(transpose));
  }
  Tensor values(layer.dtype, layer.mask.nnz);
  SddmmCsr call = layer.gradient_call(values, nullptr);
  const Memory scratch(sddmm_csr_scratch(call));
  call.scratch = scratch.get();
  require_success(name, sddmm_csr(call, nullptr));
  require_close(name + ": sddmm_csr", values, layer.value_gradient());

  Tensor grad_x(layer.dtype, layer.batch * layer.mask.cols), grad_values(layer.dtype, layer.mask.nnz),
      grad_bias(layer.dtype, layer.mask.rows);
  SddmmCsr gradients = layer.gradient_call(grad_values, &grad_bias);
  const SpmmCsr input_gradient = layer.product_call(true, grad_x);
  const Memory backward_scratch(spmm_csr_backward_scratch(gradients, input_gradient));
  gradients.scratch = backward_scratch.get();
  require_success(name, spmm_csr_backward(gradients, input_gradient, nullptr));
  require_close(name + ": spmm_csr_backward, x", grad_x, layer.product(true));
  require_close(name + ": spmm_csr_backward, values", grad_values, layer.value_gradient());
  require_close(name + ": spmm_csr_backward, bias", grad_bias, layer.bias_gradient());
}

}  // namespace

void run_cases(Random& random) {
  const Mask ragged(37, 45, 0.2, random), long_row(5, 700, 0.1, random);
  check("ragged, float", Layer(DType::kFloat, ragged, 70, random));
  check("ragged, half", Layer(DType::kHalf, ragged, 133, random));
  check("a long row, float", Layer(DType::kFloat, long_row, 3, random));
}

}  // namespace driver
