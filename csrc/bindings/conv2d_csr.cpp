#include "cpu/conv2d_csr.h"

#include <algorithm>

#include "bindings/binding.h"

namespace snipkern {
namespace {

using Ints = std::vector<int64_t>;

// Prints like Python's list of ints.
std::ostream& operator<<(std::ostream& out, const Ints& values) {
  out << "[";
  for (size_t i = 0; i < values.size(); ++i) out << (i == 0 ? "" : ", ") << values[i];
  return out << "]";
}

bool at_least(const Ints& values, int64_t least) {
  return std::all_of(values.begin(), values.end(), [least](int64_t value) { return value >= least; });
}

// require_geometry of snipkern/ops/checks.py; the output's height and width are in the result.
Conv2dShape require_geometry(const char* op, int64_t batch, const Ints& size, const Ints& weight_shape,
                             const Ints& stride, const Ints& padding, const Ints& dilation) {
  SNIPKERN_REQUIRE(weight_shape.size() == 4 && at_least(weight_shape, 1), op, weight_shape,
                   "weight_shape must be [out_channels, in_channels, height, width]");
  SNIPKERN_REQUIRE(stride.size() == 2 && padding.size() == 2 && dilation.size() == 2, op,
                   stride << ", " << padding << ", " << dilation,
                   "stride, padding and dilation must have 2 entries each");
  SNIPKERN_REQUIRE(at_least(stride, 1) && at_least(padding, 0) && at_least(dilation, 1), op,
                   stride << ", " << padding << ", " << dilation,
                   "stride and dilation must be positive, padding not negative");
  Conv2dShape shape{};
  shape.batch = batch;
  shape.out_channels = weight_shape[0];
  shape.in_channels = weight_shape[1];
  const Ints kernel{weight_shape[2], weight_shape[3]};
  for (int i = 0; i < 2; ++i) {
    shape.kernel[i] = kernel[i];
    shape.size[i] = size[i];
    shape.stride[i] = stride[i];
    shape.padding[i] = padding[i];
    shape.dilation[i] = dilation[i];
    const int64_t room = size[i] + 2 * padding[i] - dilation[i] * (kernel[i] - 1) - 1;
    SNIPKERN_REQUIRE(room >= 0, op,
                     "input " << size << ", kernel " << kernel << ", padding " << padding << ", dilation " << dilation,
                     "the padded input must be at least as large as the kernel");
    shape.out_size[i] = room / stride[i] + 1;
  }
  return shape;
}

// The geometry of the ops that take x, and what they require of it.
Conv2dShape require_input(const char* op, const Tensor& x, const Ints& weight_shape, const Ints& stride,
                          const Ints& padding, const Ints& dilation) {
  SNIPKERN_REQUIRE(x.dim() == 4, op, Sizes{x}, "x must be [batch, channels, height, width]");
  const Conv2dShape shape =
      require_geometry(op, x.size(0), {x.size(2), x.size(3)}, weight_shape, stride, padding, dilation);
  SNIPKERN_REQUIRE(x.size(1) == shape.in_channels, op, x.size(1), "x must have " << shape.in_channels << " channels");
  return shape;
}

// `batch` is how the message says it: a number, or the word where any number will do.
template <typename Batch>
void require_grad(const char* op, const Tensor& grad, const Conv2dShape& shape, const Batch& batch) {
  SNIPKERN_REQUIRE(grad.dim() == 4 && grad.size(0) == shape.batch && grad.size(1) == shape.out_channels &&
                       grad.size(2) == shape.out_size[0] && grad.size(3) == shape.out_size[1],
                   op, Sizes{grad},
                   "grad must be [" << batch << ", " << shape.out_channels << ", " << shape.out_size[0] << ", "
                                    << shape.out_size[1] << "]");
}

void require_values(const char* op, const Tensor& values, const Tensor& like, const char* like_name) {
  SNIPKERN_REQUIRE(values.dim() == 1, op, Sizes{values}, "values must be [kept]");
  require_like(op, "values", values, like, like_name);
}

// Images of tens of MB would cost a page fault for every 4 KiB.
Tensor new_output(const Tensor& like, const Ints& sizes) {
  Tensor output = torch::stable::new_empty(like, sizes);
  prefer_huge_pages(output.mutable_data_ptr(), static_cast<size_t>(output.numel()) * output.element_size());
  return output;
}

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
