#include "cuda/conv2d_csr.h"

#include "bindings/conv2d_csr_arguments.h"
#include "bindings/cuda/binding.h"
#include "bindings/cuda/image_limits.h"

namespace snipkern::cuda {
namespace {

Tensor conv2d_csr_cuda(const Tensor& x, const Tensor& values, const std::optional<Tensor>& bias, const Tensor& topology,
                       Ints weight_shape, Ints stride, Ints padding, Ints dilation) {
  constexpr const char* kOp = "conv2d_csr";
  const Conv2dCsrArguments arguments(kOp, x, values, bias, topology, {weight_shape, stride, padding, dilation});
  require_same_device(kOp, "topology", topology, x, "x");
  require_small_images(kOp, arguments.shape);
  const CallSite site(x);
  const Conv2dShape& shape = arguments.shape;
  Tensor y = new_output(x, {shape.batch, shape.out_channels, shape.out_size[0], shape.out_size[1]});
  require_launched(kOp, conv2d_csr(arguments.call<Conv2dCsr>(y), site.stream()));
  return y;
}

Tensor conv2d_csr_input_grad_cuda(const Tensor& grad, const Tensor& values, const Tensor& topology, Ints weight_shape,
                                  Ints size, Ints stride, Ints padding, Ints dilation) {
  constexpr const char* kOp = "conv2d_csr_input_grad";
  const Conv2dCsrInputGradArguments arguments(kOp, grad, values, topology, size,
                                              {weight_shape, stride, padding, dilation});
  require_same_device(kOp, "topology", topology, grad, "grad");
  require_small_images(kOp, arguments.shape);
  const CallSite site(grad);
  Tensor grad_x = new_output(grad, {arguments.shape.batch, arguments.shape.in_channels, size[0], size[1]});
  Conv2dCsrInputGrad call = arguments.call<Conv2dCsrInputGrad>(grad_x);
  call.nnz = values.numel();
  launch_with_scratch(kOp, call, conv2d_csr_input_grad_scratch, conv2d_csr_input_grad, grad, site);
  return grad_x;
}

Tensor conv2d_csr_weight_grad_cuda(const Tensor& grad, const Tensor& x, const Tensor& topology, int64_t nnz,
                                   Ints weight_shape, Ints stride, Ints padding, Ints dilation) {
  constexpr const char* kOp = "conv2d_csr_weight_grad";
  const Conv2dCsrWeightGradArguments arguments(kOp, grad, x, topology, nnz, {weight_shape, stride, padding, dilation});
  require_same_device(kOp, "topology", topology, grad, "grad");
  require_small_images(kOp, arguments.shape);
  const CallSite site(grad);
  Tensor values = new_output(grad, {nnz});
  Conv2dCsrWeightGrad call = arguments.call<Conv2dCsrWeightGrad>(values);
  call.nnz = nnz;
  launch_with_scratch(kOp, call, conv2d_csr_weight_grad_scratch, conv2d_csr_weight_grad, grad, site);
  return values;
}

}  // namespace
}  // namespace snipkern::cuda

SNIPKERN_CUDA_LIBRARY(m) {
  m.impl("conv2d_csr", TORCH_BOX(&snipkern::cuda::conv2d_csr_cuda));
  m.impl("conv2d_csr_input_grad", TORCH_BOX(&snipkern::cuda::conv2d_csr_input_grad_cuda));
  m.impl("conv2d_csr_weight_grad", TORCH_BOX(&snipkern::cuda::conv2d_csr_weight_grad_cuda));
}
