// What the bindings of all convolutions share: the requirements on sizes, in the words of snipkern/ops/checks.py.
#pragma once

#include <algorithm>

#include "bindings/arguments.h"
#include "cpu/conv_plan.h"

namespace snipkern {

using Ints = std::vector<int64_t>;

// Prints like Python's list of ints.
inline std::ostream& operator<<(std::ostream& out, const Ints& values) {
  out << "[";
  for (size_t i = 0; i < values.size(); ++i) out << (i == 0 ? "" : ", ") << values[i];
  return out << "]";
}

inline bool at_least(const Ints& values, int64_t least) {
  return std::all_of(values.begin(), values.end(), [least](int64_t value) { return value >= least; });
}

// require_geometry of snipkern/ops/checks.py; the output's height and width are in the result.
inline Conv2dShape require_geometry(const char* op, int64_t batch, const Ints& size, const Ints& weight_shape,
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
inline Conv2dShape require_input(const char* op, const Tensor& x, const Ints& weight_shape, const Ints& stride,
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

// Where a convolution's op puts its weights, as it is called.
struct ConvWindow {
  const Ints &weight_shape, &stride, &padding, &dilation;
};

// What the convolutions of single weights and of blocks require alike, as product_checks.h has it of the products.
inline Conv2dShape require_conv2d(const char* op, const Tensor& x, const Tensor& values,
                                  const std::optional<Tensor>& bias, const ConvWindow& window) {
  require_float(op, "x", x);
  const Conv2dShape shape = require_input(op, x, window.weight_shape, window.stride, window.padding, window.dilation);
  require_values(op, values, x, "x");
  require_bias(op, bias, shape.out_channels, x);
  return shape;
}

inline Conv2dShape require_conv2d_input_grad(const char* op, const Tensor& grad, const Tensor& values, const Ints& size,
                                             const ConvWindow& window) {
  require_float(op, "grad", grad);
  SNIPKERN_REQUIRE(size.size() == 2, op, size, "size must have 2 entries");
  const int64_t batch = grad.dim() > 0 ? grad.size(0) : 0;
  const Conv2dShape shape =
      require_geometry(op, batch, size, window.weight_shape, window.stride, window.padding, window.dilation);
  require_grad(op, grad, shape, "batch");
  require_values(op, values, grad, "grad");
  return shape;
}

inline Conv2dShape require_conv2d_weight_grad(const char* op, const Tensor& grad, const Tensor& x,
                                              const ConvWindow& window) {
  require_float(op, "grad", grad);
  const Conv2dShape shape = require_input(op, x, window.weight_shape, window.stride, window.padding, window.dilation);
  require_grad(op, grad, shape, shape.batch);
  require_like(op, "x", x, grad, "grad");
  return shape;
}

}  // namespace snipkern
