// The arguments of conv2d_csr and its gradients on any device, as csr_arguments.h has those of the products.
#pragma once

#include "bindings/conv_geometry.h"

namespace snipkern {

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
                     const Tensor& topology, const ConvWindow& window)
      : op(op),
        shape(require_conv2d(op, x, values, bias, window)),
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
};

struct Conv2dCsrInputGradArguments {
  const char* op;
  Conv2dShape shape;
  TopologyView view;
  Tensor grad, values;

  Conv2dCsrInputGradArguments(const char* op, const Tensor& grad, const Tensor& values, const Tensor& topology,
                              const Ints& size, const ConvWindow& window)
      : op(op),
        shape(require_conv2d_input_grad(op, grad, values, size, window)),
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
};

struct Conv2dCsrWeightGradArguments {
  const char* op;
  Conv2dShape shape;
  TopologyView view;
  Tensor grad, x;

  Conv2dCsrWeightGradArguments(const char* op, const Tensor& grad, const Tensor& x, const Tensor& topology, int64_t nnz,
                               const ConvWindow& window)
      : op(op),
        shape(require_conv2d_weight_grad(op, grad, x, window)),
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
};

}  // namespace snipkern
