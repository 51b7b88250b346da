#include "cuda/conv2d_csr.h"

#include "cuda/conv_window.cuh"
#include "cuda/csr_gradient.cuh"
#include "cuda/csr_product.cuh"
#include "cuda/linear_csr.h"

namespace snipkern::cuda {
namespace {

template <typename T, bool kForward>
cudaError_t product(const ConvWalk& walk, const CsrLists& lists, const void* source, const void* values,
                    const void* bias, void* out, cudaStream_t stream) {
  const ConvWindow<T, kForward> window{static_cast<const T*>(source), walk};
  const ConvOutput<T> output{static_cast<T*>(out), static_cast<const T*>(bias), walk};
  return launch_csr_product(lists, values, walk.out_channels, window.tiles(), window, output, stream);
}

template <typename T>
ConvGradientWindow<T> gradient_window(const Conv2dCsrWeightGrad& call) {
  const ConvWalk walk(call.shape, ConvDirection::kForward);
  return {{static_cast<const T*>(call.x), walk}, static_cast<const T*>(call.grad)};
}

}  // namespace

cudaError_t conv2d_csr(const Conv2dCsr& call, cudaStream_t stream) {
  const ConvWalk walk(call.shape, ConvDirection::kForward);
  const CsrLists lists{call.ptr, 1, call.index};
  return with_dtype(call.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    return product<T, true>(walk, lists, call.x, call.values, call.bias, call.y, stream);
  });
}

int64_t conv2d_csr_input_grad_scratch(const Conv2dCsrInputGrad& call) {
  return list_order_bytes(call.dtype, call.order, call.nnz);
}

cudaError_t conv2d_csr_input_grad(const Conv2dCsrInputGrad& call, cudaStream_t stream) {
  const ConvWalk walk(call.shape, ConvDirection::kInputGrad);
  const CsrLists lists{call.ptr, walk.taps(), call.index};
  return with_dtype(call.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    to_list_order<T>(call.values, call.order, call.nnz, call.scratch, stream);
    return product<T, false>(walk, lists, call.grad, call.scratch, nullptr, call.grad_x, stream);
  });
}

int64_t conv2d_csr_weight_grad_scratch(const Conv2dCsrWeightGrad& call) {
  return with_dtype(call.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const GradientSplits splits(call.shape.out_channels, gradient_window<T>(call).tiles());
    return splits.scratch_bytes(call.nnz, call.shape.out_channels, false, sizeof(accumulator_t<T>));
  });
}

cudaError_t conv2d_csr_weight_grad(const Conv2dCsrWeightGrad& call, cudaStream_t stream) {
  const CsrLists lists{call.ptr, 1, call.index};
  return with_dtype(call.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    return launch_csr_gradient(lists, call.nnz, call.shape.out_channels, gradient_window<T>(call), call.values, nullptr,
                               call.scratch, stream);
  });
}

}  // namespace snipkern::cuda
