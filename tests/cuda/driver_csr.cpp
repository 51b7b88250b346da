// Products with single weights and their gradients.
#include "cuda/sddmm_csr.h"
#include "cuda/spmm_csr.h"
#include "driver_lists.h"

namespace driver {
namespace {

using namespace snipkern::cuda;

SpmmCsr product_call(const Layer& layer, const Lists& lists, bool transpose, Tensor& y) {
  SpmmCsr call{};
  call.dtype = layer.dtype;
  call.x = (transpose ? layer.grad : layer.x).memory.get();
  call.values = layer.values.memory.get();
  call.bias = transpose ? nullptr : layer.bias.memory.get();
  call.ptr = (transpose ? lists.transposed_ptr : lists.ptr).as<int32_t>();
  call.index = {(transpose ? lists.transposed_index : lists.index).get(), true};
  call.order = transpose ? lists.order.as<int32_t>() : nullptr;
  call.nnz = layer.mask.nnz();
  call.batch = layer.batch;
  call.inputs = transpose ? layer.mask.rows : layer.mask.cols;
  call.outputs = transpose ? layer.mask.cols : layer.mask.rows;
  call.y = y.memory.get();
  return call;
}

SddmmCsr gradient_call(const Layer& layer, const Lists& lists, Tensor& grad_values, Tensor& grad_bias) {
  SddmmCsr call{};
  call.dtype = layer.dtype;
  call.a = layer.grad.memory.get();
  call.b = layer.x.memory.get();
  call.ptr = lists.ptr.as<int32_t>();
  call.index = {lists.index.get(), true};
  call.nnz = layer.mask.nnz();
  call.batch = layer.batch;
  call.rows = layer.mask.rows;
  call.cols = layer.mask.cols;
  call.values = grad_values.memory.get();
  call.bias = grad_bias.memory.get();
  return call;
}

void check(const std::string& name, DType dtype, const Lists& lists, int64_t batch, Random& random) {
  const Layer layer(dtype, lists.entries, batch, random);
  Tensor y(dtype, batch * layer.mask.rows);
  SpmmCsr call = product_call(layer, lists, false, y);
  const Memory scratch(spmm_csr_scratch(call));
  call.scratch = scratch.get();
  require_success(name, spmm_csr(call, nullptr));
  require_close(name + ": spmm_csr", y, layer.product(false));

  Tensor grad_x(dtype, batch * layer.mask.cols), grad_values(dtype, layer.mask.nnz()),
      grad_bias(dtype, layer.mask.rows);
  SddmmCsr gradients = gradient_call(layer, lists, grad_values, grad_bias);
  const SpmmCsr input_gradient = product_call(layer, lists, true, grad_x);
  const Memory backward_scratch(spmm_csr_backward_scratch(gradients, input_gradient));
  gradients.scratch = backward_scratch.get();
  require_success(name, spmm_csr_backward(gradients, input_gradient, nullptr));
  require_close(name + ": spmm_csr_backward, x", grad_x, layer.product(true));
  require_close(name + ": spmm_csr_backward, values", grad_values, layer.value_gradient());
  require_close(name + ": spmm_csr_backward, bias", grad_bias, layer.bias_gradient());
}

}  // namespace

void run_cases(Random& random) {
  const Lists ragged(37, 45, 0.2, random), long_row(4, 600, 0.05, random);
  check("ragged, float", DType::kFloat, ragged, 70, random);
  check("ragged, half", DType::kHalf, ragged, 5, random);
  check("a long row, float", DType::kFloat, long_row, 3, random);
}

}  // namespace driver
