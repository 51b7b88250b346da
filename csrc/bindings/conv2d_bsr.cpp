#include "cpu/conv2d_bsr.h"

#include "bindings/binding.h"
#include "bindings/bsr_view.h"
#include "bindings/conv_geometry.h"

namespace snipkern {
namespace {

BsrIndex block_view(const char* op, const Tensor& topology, int64_t nnz, const Conv2dShape& shape, int64_t block_height,
                    int64_t block_width) {
  const int64_t cols = shape.in_channels * shape.kernel[0] * shape.kernel[1];
  const BsrIndex index = block_index(op, topology, nnz, shape.out_channels, cols, block_height, block_width);
  SNIPKERN_REQUIRE(index.row_place == nullptr, op, "another order",
                   "rows and columns of the topology must be in the weight's order");
  return index;
}

Tensor conv2d_bsr_cpu(const Tensor& x, const Tensor& values, const std::optional<Tensor>& bias, const Tensor& topology,
                      Ints weight_shape, int64_t block_height, int64_t block_width, Ints stride, Ints padding,
                      Ints dilation) {
  constexpr const char* kOp = "conv2d_bsr";
  const Conv2dShape shape = require_conv2d(kOp, x, values, bias, {weight_shape, stride, padding, dilation});
  const BsrIndex index = block_view(kOp, topology, values.numel(), shape, block_height, block_width);
  const Tensor images = as_contiguous(x), kept = as_contiguous(values);
  const Tensor offsets = bias.has_value() ? as_contiguous(*bias) : Tensor();
  Tensor y = new_output(x, {shape.batch, shape.out_channels, shape.out_size[0], shape.out_size[1]});
  Conv2dBsr call{};
  call.dtype = kernel_dtype(kOp, x);
  call.shape = shape;
  call.x = images.const_data_ptr();
  call.values = kept.const_data_ptr();
  call.bias = bias.has_value() ? offsets.const_data_ptr() : nullptr;
  call.index = index;
  call.y = y.mutable_data_ptr();
  conv2d_bsr(call, run_tasks);
  return y;
}

Tensor conv2d_bsr_input_grad_cpu(const Tensor& grad, const Tensor& values, const Tensor& topology, Ints weight_shape,
                                 int64_t block_height, int64_t block_width, Ints size, Ints stride, Ints padding,
                                 Ints dilation) {
  constexpr const char* kOp = "conv2d_bsr_input_grad";
  const Conv2dShape shape =
      require_conv2d_input_grad(kOp, grad, values, size, {weight_shape, stride, padding, dilation});
  const BsrIndex index = block_view(kOp, topology, values.numel(), shape, block_height, block_width);
  const Tensor gradients = as_contiguous(grad), kept = as_contiguous(values);
  Tensor grad_x = new_output(grad, {shape.batch, shape.in_channels, size[0], size[1]});
  Conv2dBsrInputGrad call{};
  call.dtype = kernel_dtype(kOp, grad);
  call.shape = shape;
  call.grad = gradients.const_data_ptr();
  call.values = kept.const_data_ptr();
  call.index = index;
  call.grad_x = grad_x.mutable_data_ptr();
  conv2d_bsr_input_grad(call, run_tasks);
  return grad_x;
}

Tensor conv2d_bsr_weight_grad_cpu(const Tensor& grad, const Tensor& x, const Tensor& topology, int64_t nnz,
                                  Ints weight_shape, int64_t block_height, int64_t block_width, Ints stride,
                                  Ints padding, Ints dilation) {
  constexpr const char* kOp = "conv2d_bsr_weight_grad";
  const Conv2dShape shape = require_conv2d_weight_grad(kOp, grad, x, {weight_shape, stride, padding, dilation});
  const BsrIndex index = block_view(kOp, topology, nnz, shape, block_height, block_width);
  const Tensor gradients = as_contiguous(grad), images = as_contiguous(x);
  Tensor values = torch::stable::new_empty(grad, {nnz});
  Conv2dBsrWeightGrad call{};
  call.dtype = kernel_dtype(kOp, grad);
  call.shape = shape;
  call.grad = gradients.const_data_ptr();
  call.x = images.const_data_ptr();
  call.index = index;
  call.values = values.mutable_data_ptr();
  conv2d_bsr_weight_grad(call, run_tasks);
  return values;
}

}  // namespace
}  // namespace snipkern

STABLE_TORCH_LIBRARY_IMPL(snipkern, CPU, m) {
  m.impl("conv2d_bsr", TORCH_BOX(&snipkern::conv2d_bsr_cpu));
  m.impl("conv2d_bsr_input_grad", TORCH_BOX(&snipkern::conv2d_bsr_input_grad_cpu));
  m.impl("conv2d_bsr_weight_grad", TORCH_BOX(&snipkern::conv2d_bsr_weight_grad_cpu));
}
