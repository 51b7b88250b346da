// The arguments of spmm_csr, sddmm_csr and spmm_csr_backward on any device: checked, in the words of
// snipkern/ops/schema.py, made contiguous, and put into kernels' calls. The calls of CPU and CUDA kernels name the same
// things the same.
#pragma once

#include "bindings/arguments.h"
#include "bindings/product_checks.h"

namespace snipkern {

struct SpmmCsrArguments {
  const char* op;
  Tensor x, values;
  std::optional<Tensor> bias;
  TopologyView view;
  int64_t inputs, outputs;
  bool transpose;

  SpmmCsrArguments(const char* op, const Tensor& x, const Tensor& values, const std::optional<Tensor>& bias,
                   const Tensor& topology, int64_t rows, int64_t cols, bool transpose)
      : op(op),
        view(checked(op, x, values, bias, topology, rows, cols, transpose)),
        inputs(transpose ? rows : cols),
        outputs(transpose ? cols : rows),
        transpose(transpose) {
    this->x = as_contiguous(x);
    this->values = as_contiguous(values);
    if (bias.has_value()) this->bias = as_contiguous(*bias);
  }

  template <typename Call>
  Call call(Tensor& y) const {
    Call call{};
    call.dtype = kernel_dtype(op, x);
    call.x = x.const_data_ptr();
    call.values = values.const_data_ptr();
    call.bias = bias.has_value() ? bias->const_data_ptr() : nullptr;
    call.ptr = transpose ? view.transposed_ptr : view.ptr;
    call.index = transpose ? view.transposed_index : view.index;
    call.order = transpose ? view.transposed_order : nullptr;
    call.batch = x.size(0);
    call.inputs = inputs;
    call.outputs = outputs;
    call.y = y.mutable_data_ptr();
    return call;
  }

 private:
  static TopologyView checked(const char* op, const Tensor& x, const Tensor& values, const std::optional<Tensor>& bias,
                              const Tensor& topology, int64_t rows, int64_t cols, bool transpose) {
    const int64_t inputs = transpose ? rows : cols, outputs = transpose ? cols : rows;
    require_product(op, x, values, bias, inputs, outputs);
    return TopologyView(op, topology, values.numel(), rows, cols);
  }
};

// The call of a value gradient of contiguous a and b that passed the checks.
template <typename Call>
Call sddmm_csr_call(const char* op, const Tensor& a, const Tensor& b, const TopologyView& view, Tensor& values) {
  Call call{};
  call.dtype = kernel_dtype(op, a);
  call.a = a.const_data_ptr();
  call.b = b.const_data_ptr();
  call.ptr = view.ptr;
  call.index = view.index;
  call.batch = a.size(0);
  call.rows = a.size(1);
  call.cols = b.size(1);
  call.values = values.mutable_data_ptr();
  return call;
}

struct SddmmCsrArguments {
  const char* op;
  Tensor a, b;
  TopologyView view;

  SddmmCsrArguments(const char* op, const Tensor& a, const Tensor& b, const Tensor& topology, int64_t nnz, int64_t rows,
                    int64_t cols)
      : op(op), view(checked(op, a, b, topology, nnz, rows, cols)) {
    this->a = as_contiguous(a);
    this->b = as_contiguous(b);
  }

  template <typename Call>
  Call call(Tensor& values) const {
    return sddmm_csr_call<Call>(op, a, b, view, values);
  }

 private:
  static TopologyView checked(const char* op, const Tensor& a, const Tensor& b, const Tensor& topology, int64_t nnz,
                              int64_t rows, int64_t cols) {
    require_value_grad(op, a, b, rows, cols);
    return TopologyView(op, topology, nnz, rows, cols);
  }
};

struct SpmmCsrBackwardArguments {
  const char* op;
  Tensor grad, x, values;
  TopologyView view;
  bool with_bias;

  SpmmCsrBackwardArguments(const char* op, const Tensor& grad, const Tensor& x, const Tensor& values,
                           const Tensor& topology, int64_t rows, int64_t cols, bool with_bias)
      : op(op), view(checked(op, grad, x, values, topology, rows, cols)), with_bias(with_bias) {
    this->grad = as_contiguous(grad);
    this->x = as_contiguous(x);
    this->values = as_contiguous(values);
  }

  template <typename Call>
  Call value_grad(Tensor& grad_values, Tensor& grad_bias) const {
    Call call = sddmm_csr_call<Call>(op, grad, x, view, grad_values);
    call.bias = with_bias ? grad_bias.mutable_data_ptr() : nullptr;
    return call;
  }

  template <typename Call>
  Call input_grad(Tensor& grad_x) const {
    Call call{};
    call.dtype = kernel_dtype(op, x);
    call.x = grad.const_data_ptr();
    call.values = values.const_data_ptr();
    call.ptr = view.transposed_ptr;
    call.index = view.transposed_index;
    call.order = view.transposed_order;
    call.batch = grad.size(0);
    call.inputs = grad.size(1);
    call.outputs = x.size(1);
    call.y = grad_x.mutable_data_ptr();
    return call;
  }

 private:
  static TopologyView checked(const char* op, const Tensor& grad, const Tensor& x, const Tensor& values,
                              const Tensor& topology, int64_t rows, int64_t cols) {
    require_backward(op, grad, x, values, rows, cols);
    return TopologyView(op, topology, values.numel(), rows, cols);
  }
};

}  // namespace snipkern
