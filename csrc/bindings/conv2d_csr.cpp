#include "cpu/conv2d_csr.h"

#include "bindings/binding.h"
#include "bindings/conv_geometry.h"

namespace snipkern {
namespace {

TopologyView topology_view(const char* op, const Tensor& topology, int64_t nnz, const Conv2dShape& shape) {
  return TopologyView(op, topology, nnz, shape.out_channels, shape.in_channels * shape.kernel[0] * shape.kernel[1]);
}

Tensor conv2d_csr_cpu(const Tensor& x, const Tensor& values, const std::optional<Tensor>& bias, const Tensor& topology,
                      Ints weight_shape, Ints stride, Ints padding, Ints dilation) {
  constexpr const char* kOp = "conv2d_csr";
  require_float(kOp, "x", x);
  const Conv2dShape shape = require_input(kOp, x, weight_shape, stride, padding, dilation);
  require_values(kOp, values, x, "x");
  require_bias(kOp, bias, shape.out_channels, x);
  const TopologyView view = topology_view(kOp, topology, values.numel(), shape);
  const Tensor images = as_contiguous(x), kept = as_contiguous(values);
  const Tensor offsets = bias.has_value() ? as_contiguous(*bias) : Tensor();
  Tensor y = new_output(x, {shape.batch, shape.out_channels, shape.out_size[0], shape.out_size[1]});
  Conv2dCsr call{};
  call.dtype = kernel_dtype(kOp, x);
  call.shape = shape;
  call.x = images.const_data_ptr();
  call.values = kept.const_data_ptr();
  call.bias = bias.has_value() ? offsets.const_data_ptr() : nullptr;
  call.ptr = view.ptr;
  call.index = view.index;
  call.y = y.mutable_data_ptr();
  conv2d_csr(call, run_tasks);
  return y;
}

Tensor conv2d_csr_input_grad_cpu(const Tensor& grad, const Tensor& values, const Tensor& topology, Ints weight_shape,
                                 Ints size, Ints stride, Ints padding, Ints dilation) {
  constexpr const char* kOp = "conv2d_csr_input_grad";
  require_float(kOp, "grad", grad);
  SNIPKERN_REQUIRE(size.size() == 2, kOp, size, "size must have 2 entries");
  const int64_t batch = grad.dim() > 0 ? grad.size(0) : 0;
  const Conv2dShape shape = require_geometry(kOp, batch, size, weight_shape, stride, padding, dilation);
  require_grad(kOp, grad, shape, "batch");
  require_values(kOp, values, grad, "grad");
  const TopologyView view = topology_view(kOp, topology, values.numel(), shape);
  const Tensor gradients = as_contiguous(grad), kept = as_contiguous(values);
  Tensor grad_x = new_output(grad, {batch, shape.in_channels, size[0], size[1]});
  Conv2dCsrInputGrad call{};
  call.dtype = kernel_dtype(kOp, grad);
  call.shape = shape;
  call.grad = gradients.const_data_ptr();
  call.values = kept.const_data_ptr();
  call.ptr = view.transposed_ptr;
  call.index = view.transposed_index;
  call.order = view.transposed_order;
  call.grad_x = grad_x.mutable_data_ptr();
  conv2d_csr_input_grad(call, run_tasks);
  return grad_x;
}

Tensor conv2d_csr_weight_grad_cpu(const Tensor& grad, const Tensor& x, const Tensor& topology, int64_t nnz,
                                  Ints weight_shape, Ints stride, Ints padding, Ints dilation) {
  constexpr const char* kOp = "conv2d_csr_weight_grad";
  require_float(kOp, "grad", grad);
  const Conv2dShape shape = require_input(kOp, x, weight_shape, stride, padding, dilation);
  require_grad(kOp, grad, shape, shape.batch);
  require_like(kOp, "x", x, grad, "grad");
  const TopologyView view = topology_view(kOp, topology, nnz, shape);
  const Tensor gradients = as_contiguous(grad), images = as_contiguous(x);
  Tensor values = torch::stable::new_empty(grad, {nnz});
  Conv2dCsrWeightGrad call{};
  call.dtype = kernel_dtype(kOp, grad);
  call.shape = shape;
  call.grad = gradients.const_data_ptr();
  call.x = images.const_data_ptr();
  call.ptr = view.ptr;
  call.index = view.index;
  call.values = values.mutable_data_ptr();
  conv2d_csr_weight_grad(call, run_tasks);
  return values;
}

}  // namespace
}  // namespace snipkern

STABLE_TORCH_LIBRARY_IMPL(snipkern, CPU, m) {
  m.impl("conv2d_csr", TORCH_BOX(&snipkern::conv2d_csr_cpu));
  m.impl("conv2d_csr_input_grad", TORCH_BOX(&snipkern::conv2d_csr_input_grad_cpu));
  m.impl("conv2d_csr_weight_grad", TORCH_BOX(&snipkern::conv2d_csr_weight_grad_cpu));
}
