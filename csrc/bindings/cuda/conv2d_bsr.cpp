#include "cuda/conv2d_bsr.h"

#include "bindings/conv_geometry.h"
#include "bindings/cuda/binding.h"
#include "bindings/cuda/block_view.h"
#include "bindings/cuda/image_limits.h"
#include "bindings/cuda/tf32.h"

namespace snipkern::cuda {
namespace {

BlockIndex block_view(const char* op, const Tensor& topology, int64_t nnz, const Conv2dShape& shape,
                      int64_t block_height, int64_t block_width, const Tensor& like, const char* like_name) {
  const int64_t cols = shape.in_channels * shape.kernel[0] * shape.kernel[1];
  const BlockIndex index =
      block_index(op, topology, nnz, shape.out_channels, cols, block_height, block_width, like, like_name);
  SNIPKERN_REQUIRE(index.row_place == nullptr, op, "another order",
                   "rows and columns of the topology must be in the weight's order");
  require_small_images(op, shape);
  return index;
}

Tensor conv2d_bsr_cuda(const Tensor& x, const Tensor& values, const std::optional<Tensor>& bias, const Tensor& topology,
                       Ints weight_shape, int64_t block_height, int64_t block_width, Ints stride, Ints padding,
                       Ints dilation) {
  constexpr const char* kOp = "conv2d_bsr";
  const Conv2dShape shape = require_conv2d(kOp, x, values, bias, {weight_shape, stride, padding, dilation});
  const BlockIndex index = block_view(kOp, topology, values.numel(), shape, block_height, block_width, x, "x");
  const CallSite site(x);
  const Tensor images = as_contiguous(x), kept = as_contiguous(values);
  const Tensor offsets = bias.has_value() ? as_contiguous(*bias) : Tensor();
  Tensor y = new_output(x, {shape.batch, shape.out_channels, shape.out_size[0], shape.out_size[1]});
  Conv2dBsr call{};
  call.dtype = kernel_dtype(kOp, x);
  call.allow_tf32 = tf32_permission();
  call.shape = shape;
  call.index = index;
  call.x = images.const_data_ptr();
  call.values = kept.const_data_ptr();
  call.bias = bias.has_value() ? offsets.const_data_ptr() : nullptr;
  call.y = y.mutable_data_ptr();
  launch_with_scratch(kOp, call, conv2d_bsr_scratch, conv2d_bsr, x, site);
  return y;
}

Tensor conv2d_bsr_input_grad_cuda(const Tensor& grad, const Tensor& values, const Tensor& topology, Ints weight_shape,
                                  int64_t block_height, int64_t block_width, Ints size, Ints stride, Ints padding,
                                  Ints dilation) {
  constexpr const char* kOp = "conv2d_bsr_input_grad";
  const Conv2dShape shape =
      require_conv2d_input_grad(kOp, grad, values, size, {weight_shape, stride, padding, dilation});
  const BlockIndex index = block_view(kOp, topology, values.numel(), shape, block_height, block_width, grad, "grad");
  const CallSite site(grad);
  const Tensor gradients = as_contiguous(grad), kept = as_contiguous(values);
  Tensor grad_x = new_output(grad, {shape.batch, shape.in_channels, size[0], size[1]});
  Conv2dBsrInputGrad call{};
  call.dtype = kernel_dtype(kOp, grad);
  call.allow_tf32 = tf32_permission();
  call.shape = shape;
  call.index = index;
  call.grad = gradients.const_data_ptr();
  call.values = kept.const_data_ptr();
  call.grad_x = grad_x.mutable_data_ptr();
  launch_with_scratch(kOp, call, conv2d_bsr_input_grad_scratch, conv2d_bsr_input_grad, grad, site);
  return grad_x;
}

Tensor conv2d_bsr_weight_grad_cuda(const Tensor& grad, const Tensor& x, const Tensor& topology, int64_t nnz,
                                   Ints weight_shape, int64_t block_height, int64_t block_width, Ints stride,
                                   Ints padding, Ints dilation) {
  constexpr const char* kOp = "conv2d_bsr_weight_grad";
  const Conv2dShape shape = require_conv2d_weight_grad(kOp, grad, x, {weight_shape, stride, padding, dilation});
  const BlockIndex index = block_view(kOp, topology, nnz, shape, block_height, block_width, grad, "grad");
  const CallSite site(grad);
  const Tensor gradients = as_contiguous(grad), images = as_contiguous(x);
  Tensor values = new_output(grad, {nnz});
  Conv2dBsrWeightGrad call{};
  call.dtype = kernel_dtype(kOp, grad);
  call.allow_tf32 = tf32_permission();
  call.shape = shape;
  call.index = index;
  call.grad = gradients.const_data_ptr();
  call.x = images.const_data_ptr();
  call.values = values.mutable_data_ptr();
  launch_with_scratch(kOp, call, conv2d_bsr_weight_grad_scratch, conv2d_bsr_weight_grad, grad, site);
  return values;
}

}  // namespace
}  // namespace snipkern::cuda

SNIPKERN_CUDA_LIBRARY(m) {
  m.impl("conv2d_bsr", TORCH_BOX(&snipkern::cuda::conv2d_bsr_cuda));
  m.impl("conv2d_bsr_input_grad", TORCH_BOX(&snipkern::cuda::conv2d_bsr_input_grad_cuda));
  m.impl("conv2d_bsr_weight_grad", TORCH_BOX(&snipkern::cuda::conv2d_bsr_weight_grad_cuda));
}
