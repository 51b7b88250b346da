#include "cpu/conv2d_csr.h"

#include <sstream>

#include "bindings/binding.h"

namespace snipkern {
namespace {

using Sizes = std::vector<int64_t>;

std::string text(const Sizes& sizes) {
  std::ostringstream out;
  out << '[';
  for (size_t i = 0; i < sizes.size(); ++i) out << (i > 0 ? ", " : "") << sizes[i];
  out << ']';
  return out.str();
}

Sizes shape_of(const Tensor& tensor) {
  Sizes sizes;
  for (int64_t i = 0; i < tensor.dim(); ++i) sizes.push_back(tensor.size(i));
  return sizes;
}

bool all_at_least(const Sizes& sizes, int64_t least) {
  for (const int64_t size : sizes) {
    if (size < least) return false;
  }
  return true;
}

// The requirements of require_geometry in snipkern/ops/checks.py, and its output sizes.
Conv2dShape geometry(const char* op, int64_t batch, const Sizes& size, const Sizes& weight_shape, const Sizes& stride,
                     const Sizes& padding, const Sizes& dilation) {
  STD_TORCH_CHECK(weight_shape.size() == 4 && all_at_least(weight_shape, 1), op,
                  ": weight_shape must be [out_channels, in_channels, height, width] (got ", text(weight_shape), ")");
  STD_TORCH_CHECK(stride.size() == 2 && padding.size() == 2 && dilation.size() == 2, op,
                  ": stride, padding and dilation must have 2 entries each (got ", text(stride), ", ", text(padding),
                  ", ", text(dilation), ")");
  STD_TORCH_CHECK(all_at_least(stride, 1) && all_at_least(padding, 0) && all_at_least(dilation, 1), op,
                  ": stride and dilation must be positive, padding not negative (got ", text(stride), ", ",
                  text(padding), ", ", text(dilation), ")");
  Conv2dShape shape{};
  shape.batch = batch;
  shape.out_channels = weight_shape[0];
  shape.in_channels = weight_shape[1];
  for (int i = 0; i < 2; ++i) {
    shape.kernel[i] = weight_shape[2 + i];
    shape.size[i] = size[i];
    shape.stride[i] = stride[i];
    shape.padding[i] = padding[i];
    shape.dilation[i] = dilation[i];
    const int64_t room = size[i] + 2 * padding[i] - dilation[i] * (shape.kernel[i] - 1) - 1;
    STD_TORCH_CHECK(room >= 0, op, ": the padded input must be at least as large as the kernel (got input ", text(size),
                    ", kernel ", text({weight_shape[2], weight_shape[3]}), ", padding ", text(padding), ", dilation ",
                    text(dilation), ")");
    shape.out_size[i] = room / stride[i] + 1;
  }
  return shape;
}

TopologyView topology_view(const char* op, const Tensor& topology, int64_t nnz, const Conv2dShape& shape) {
  return TopologyView(op, topology, nnz, shape.out_channels, shape.in_channels * shape.kernel[0] * shape.kernel[1]);
}

void check_images(const char* op, const char* name, const Tensor& images, const Sizes& expected) {
  STD_TORCH_CHECK(shape_of(images) == expected, op, ": ", name, " must be ", text(expected), " (got ",
                  text(shape_of(images)), ")");
}

void check_input(const char* op, const Tensor& x) {
  STD_TORCH_CHECK(x.dim() == 4, op, ": x must be [batch, channels, height, width] (got ", text(shape_of(x)), ")");
}

void check_channels(const char* op, const Tensor& x, const Conv2dShape& shape) {
  STD_TORCH_CHECK(x.size(1) == shape.in_channels, op, ": x must have ", shape.in_channels, " channels (got ", x.size(1),
                  ")");
}

void check_values(const char* op, const Tensor& values, const Tensor& like, const char* like_name) {
  STD_TORCH_CHECK(values.dim() == 1, op, ": values must be [kept] (got ", text(shape_of(values)), ")");
  STD_TORCH_CHECK(values.scalar_type() == like.scalar_type(), op, ": values must have ", like_name, "'s dtype");
}

Tensor conv2d_csr_cpu(const Tensor& x, const Tensor& values, const std::optional<Tensor>& bias, const Tensor& topology,
                      Sizes weight_shape, Sizes stride, Sizes padding, Sizes dilation) {
  constexpr const char* kOp = "conv2d_csr";
  Conv2dCsr call{};
  call.dtype = kernel_dtype(kOp, x);
  check_input(kOp, x);
  call.shape = geometry(kOp, x.size(0), {x.size(2), x.size(3)}, weight_shape, stride, padding, dilation);
  check_channels(kOp, x, call.shape);
  check_values(kOp, values, x, "x");
  STD_TORCH_CHECK(!bias.has_value() || (bias->dim() == 1 && bias->size(0) == call.shape.out_channels), kOp,
                  ": bias must be [", call.shape.out_channels, "] (got ", text(shape_of(*bias)), ")");
  STD_TORCH_CHECK(!bias.has_value() || bias->scalar_type() == x.scalar_type(), kOp, ": bias must have x's dtype");
  const TopologyView view = topology_view(kOp, topology, values.numel(), call.shape);
  const Tensor images = as_contiguous(x), kept = as_contiguous(values);
  const Tensor offsets = bias.has_value() ? as_contiguous(*bias) : Tensor();
  Tensor y = torch::stable::new_empty(
      x, {call.shape.batch, call.shape.out_channels, call.shape.out_size[0], call.shape.out_size[1]});
  call.x = images.const_data_ptr();
  call.values = kept.const_data_ptr();
  call.bias = bias.has_value() ? offsets.const_data_ptr() : nullptr;
  call.ptr = view.ptr;
  call.index = view.index;
  call.y = y.mutable_data_ptr();
  conv2d_csr(call, run_tasks);
  return y;
}

Tensor conv2d_csr_input_grad_cpu(const Tensor& grad, const Tensor& values, const Tensor& topology, Sizes weight_shape,
                                 Sizes size, Sizes stride, Sizes padding, Sizes dilation) {
  constexpr const char* kOp = "conv2d_csr_input_grad";
  Conv2dCsrInputGrad call{};
  call.dtype = kernel_dtype(kOp, grad);
  STD_TORCH_CHECK(size.size() == 2, kOp, ": size must have 2 entries (got ", text(size), ")");
  const int64_t batch = grad.dim() > 0 ? grad.size(0) : 0;
  call.shape = geometry(kOp, batch, size, weight_shape, stride, padding, dilation);
  check_images(kOp, "grad", grad, {batch, call.shape.out_channels, call.shape.out_size[0], call.shape.out_size[1]});
  check_values(kOp, values, grad, "grad");
  const TopologyView view = topology_view(kOp, topology, values.numel(), call.shape);
  const Tensor images = as_contiguous(grad), kept = as_contiguous(values);
  Tensor grad_x = torch::stable::new_empty(grad, {batch, call.shape.in_channels, size[0], size[1]});
  call.grad = images.const_data_ptr();
  call.values = kept.const_data_ptr();
  call.ptr = view.transposed_ptr;
  call.index = view.transposed_index;
  call.order = view.transposed_order;
  call.grad_x = grad_x.mutable_data_ptr();
  conv2d_csr_input_grad(call, run_tasks);
  return grad_x;
}

Tensor conv2d_csr_weight_grad_cpu(const Tensor& grad, const Tensor& x, const Tensor& topology, int64_t nnz,
                                  Sizes weight_shape, Sizes stride, Sizes padding, Sizes dilation) {
  constexpr const char* kOp = "conv2d_csr_weight_grad";
  Conv2dCsrWeightGrad call{};
  call.dtype = kernel_dtype(kOp, grad);
  check_input(kOp, x);
  call.shape = geometry(kOp, x.size(0), {x.size(2), x.size(3)}, weight_shape, stride, padding, dilation);
  check_channels(kOp, x, call.shape);
  check_images(kOp, "grad", grad, {x.size(0), call.shape.out_channels, call.shape.out_size[0], call.shape.out_size[1]});
  STD_TORCH_CHECK(x.scalar_type() == grad.scalar_type(), kOp, ": x must have grad's dtype");
  const TopologyView view = topology_view(kOp, topology, nnz, call.shape);
  const Tensor gradients = as_contiguous(grad), images = as_contiguous(x);
  Tensor values = torch::stable::new_empty(grad, {nnz});
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
