// The arguments of conv2d_csr and its gradients on any device, as csr_arguments.h has those of the products.
#pragma once

#include "bindings/conv_geometry.h"

namespace snipkern {

struct ConvWindowArguments {
  const Ints &weight_shape, &stride, &padding, &dilation;
};

inline TopologyView conv2d_csr_view(const char* op, const Tensor& topology, int64_t nnz, const Conv2dShape& shape) {
  return TopologyView(op, topology, nnz, shape.out_channels, shape.in_channels * shape.kernel[0] * shape.kernel[1]);
}

struct Conv2dCsrArguments {
  const char* op;
  Conv2dShape shape;
  TopologyView view;
  Tensor x, values;
  std::optional<Tensor> bias;

  Conv2dCsrArguments(const char* op, const Tensor& x, const Tensor& values, const std::optional<Tensor>& bias,
                     const Tensor& topology, const ConvWindowArguments& window)
      : op(op),
        shape(checked(op, x, values, bias, window)),
        view(conv2d_csr_view(op, topology, values.numel(), shape)),
        x(as_contiguous(x)),
        values(as_contiguous(values)) {
    if (bias.has_value()) this->bias = as_contiguous(*bias);
  }

  template <typename Call>
  Call call(Tensor& y) const {
    Call call{};
    call.dtype = kernel_dtype(op, x);
    call.shape = shape;
    call.x = x.const_data_ptr();
    call.values = values.const_data_ptr();
    call.bias = bias.has_value() ? bias->const_data_ptr() : nullptr;
    call.ptr = view.ptr;
    call.index = view.index;
    call.y = y.mutable_data_ptr();
    return call;
  }

 private:
  static Conv2dShape checked(const char* op, const Tensor& x, const Tensor& values, const std::optional<Tensor>& bias,
                             const ConvWindowArguments& window) {
    require_float(op, "x", x);
    const Conv2dShape shape = require_input(op, x, window.weight_shape, window.stride, window.padding, window.dilation);
    require_values(op, values, x, "x");
    require_bias(op, bias, shape.out_channels, x);
    return shape;
  }
};

struct Conv2dCsrInputGradArguments {
  const char* op;
  Conv2dShape shape;
  TopologyView view;
  Tensor grad, values;

  Conv2dCsrInputGradArguments(const char* op, const Tensor& grad, const Tensor& values, const Tensor& topology,
                              const Ints& size, const ConvWindowArguments& window)
      : op(op),
        shape(checked(op, grad, values, size, window)),
        view(conv2d_csr_view(op, topology, values.numel(), shape)),
        grad(as_contiguous(grad)),
        values(as_contiguous(values)) {}

  template <typename Call>
  Call call(Tensor& grad_x) const {
    Call call{};
    call.dtype = kernel_dtype(op, grad);
    call.shape = shape;
    call.grad = grad.const_data_ptr();
    call.values = values.const_data_ptr();
    call.ptr = view.transposed_ptr;
    call.index = view.transposed_index;
    call.order = view.transposed_order;
    call.grad_x = grad_x.mutable_data_ptr();
    return call;
  }

 private:
  static Conv2dShape checked(const char* op, const Tensor& grad, const Tensor& values, const Ints& size,
                             const ConvWindowArguments& window) {
    require_float(op, "grad", grad);
    SNIPKERN_REQUIRE(size.size() == 2, op, size, "size must have 2 entries");
    const int64_t batch = grad.dim() > 0 ? grad.size(0) : 0;
    const Conv2dShape shape =
        require_geometry(op, batch, size, window.weight_shape, window.stride, window.padding, window.dilation);
    require_grad(op, grad, shape, "batch");
    require_values(op, values, grad, "grad");
    return shape;
  }
};

struct Conv2dCsrWeightGradArguments {
  const char* op;
  Conv2dShape shape;
  TopologyView view;
  Tensor grad, x;

  Conv2dCsrWeightGradArguments(const char* op, const Tensor& grad, const Tensor& x, const Tensor& topology, int64_t nnz,
                               const ConvWindowArguments& window)
      : op(op),
        shape(checked(op, grad, x, window)),
        view(conv2d_csr_view(op, topology, nnz, shape)),
        grad(as_contiguous(grad)),
        x(as_contiguous(x)) {}

  template <typename Call>
  Call call(Tensor& values) const {
    Call call{};
    call.dtype = kernel_dtype(op, grad);
    call.shape = shape;
    call.grad = grad.const_data_ptr();
    call.x = x.const_data_ptr();
    call.ptr = view.ptr;
    call.index = view.index;
    call.values = values.mutable_data_ptr();
    return call;
  }

 private:
  static Conv2dShape checked(const char* op, const Tensor& grad, const Tensor& x, const ConvWindowArguments& window) {
    require_float(op, "grad", grad);
    const Conv2dShape shape = require_input(op, x, window.weight_shape, window.stride, window.padding, window.dilation);
    require_grad(op, grad, shape, shape.batch);
    require_like(op, "x", x, grad, "grad");
    return shape;
  }
};

}  // namespace snipkern
