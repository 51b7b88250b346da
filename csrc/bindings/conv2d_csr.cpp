#include "cpu/conv2d_csr.h"

#include "bindings/binding.h"
#include "bindings/conv2d_csr_arguments.h"

namespace snipkern {
namespace {

Tensor conv2d_csr_cpu(const Tensor& x, const Tensor& values, const std::optional<Tensor>& bias, const Tensor& topology,
                      Ints weight_shape, Ints stride, Ints padding, Ints dilation) {
  const Conv2dCsrArguments arguments("conv2d_csr", x, values, bias, topology,
                                     {weight_shape, stride, padding, dilation});
  const Conv2dShape& shape = arguments.shape;
  Tensor y = new_output(x, {shape.batch, shape.out_channels, shape.out_size[0], shape.out_size[1]});
  conv2d_csr(arguments.call<Conv2dCsr>(y), run_tasks);
  return y;
}

Tensor conv2d_csr_input_grad_cpu(const Tensor& grad, const Tensor& values, const Tensor& topology, Ints weight_shape,
                                 Ints size, Ints stride, Ints padding, Ints dilation) {
  const Conv2dCsrInputGradArguments arguments("conv2d_csr_input_grad", grad, values, topology, size,
                                              {weight_shape, stride, padding, dilation});
  Tensor grad_x = new_output(grad, {arguments.shape.batch, arguments.shape.in_channels, size[0], size[1]});
  conv2d_csr_input_grad(arguments.call<Conv2dCsrInputGrad>(grad_x), run_tasks);
  return grad_x;
}

Tensor conv2d_csr_weight_grad_cpu(const Tensor& grad, const Tensor& x, const Tensor& topology, int64_t nnz,
                                  Ints weight_shape, Ints stride, Ints padding, Ints dilation) {
  const Conv2dCsrWeightGradArguments arguments("conv2d_csr_weight_grad", grad, x, topology, nnz,
                                               {weight_shape, stride, padding, dilation});
  Tensor values = torch::stable::new_empty(grad, {nnz});
  conv2d_csr_weight_grad(arguments.call<Conv2dCsrWeightGrad>(values), run_tasks);
  return values;
}

}  // namespace
}  // namespace snipkern

STABLE_TORCH_LIBRARY_IMPL(snipkern, CPU, m) {
  m.impl("conv2d_csr", TORCH_BOX(&snipkern::conv2d_csr_cpu));
  m.impl("conv2d_csr_input_grad", TORCH_BOX(&snipkern::conv2d_csr_input_grad_cpu));
  m.impl("conv2d_csr_weight_grad", TORCH_BOX(&snipkern::conv2d_csr_weight_grad_cpu));
}
