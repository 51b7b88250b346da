// Products with whole blocks and their gradients.
#include "cuda/spmm_bsr.h"
#include "cuda/spmm_bsr_backward.h"
#include "driver_blocks.h"

namespace driver {
namespace {

using namespace snipkern::cuda;

void check(const std::string& name, DType dtype, bool tf32, const Blocks& blocks, int64_t batch, Random& random) {
  const Layer layer(dtype, blocks.entries, batch, random);
  const double products = tf32 ? 0x1p-10 : 0;  // both factors are rounded to 11 bits
  Tensor y(dtype, batch * layer.mask.rows);
  SpmmBsr call{};
  call.dtype = dtype;
  call.allow_tf32 = tf32;
  call.x = layer.x.memory.get();
  call.values = layer.values.memory.get();
  call.bias = layer.bias.memory.get();
  call.index = blocks.index;
  call.batch = batch;
  call.y = y.memory.get();
  const Memory scratch(spmm_bsr_scratch(call));
  call.scratch = scratch.get();
  require_success(name, spmm_bsr(call, nullptr));
  require_close(name + ": spmm_bsr", y, layer.product(false), products);

  Tensor grad_x(dtype, batch * layer.mask.cols), grad_values(dtype, layer.mask.nnz()),
      grad_bias(dtype, layer.mask.rows);
  SpmmBsrBackward gradients{};
  gradients.dtype = dtype;
  gradients.allow_tf32 = tf32;
  gradients.grad = layer.grad.memory.get();
  gradients.x = call.x;
  gradients.values = call.values;
  gradients.index = blocks.index;
  gradients.batch = batch;
  gradients.grad_x = grad_x.memory.get();
  gradients.grad_values = grad_values.memory.get();
  gradients.grad_bias = grad_bias.memory.get();
  const Memory backward_scratch(spmm_bsr_backward_scratch(gradients));
  gradients.scratch = backward_scratch.get();
  require_success(name, spmm_bsr_backward(gradients, nullptr));
  require_close(name + ": spmm_bsr_backward, x", grad_x, layer.product(true), products);
  require_close(name + ": spmm_bsr_backward, values", grad_values, layer.value_gradient(), products);
  require_close(name + ": spmm_bsr_backward, bias", grad_bias, layer.bias_gradient());
}

}  // namespace

void run_cases(Random& random) {
  const Blocks even(48, 80, 16, 16, false, random), ragged(37, 70, 12, 20, true, random);
  check("blocks of 16, half", DType::kHalf, false, even, 19, random);
  check("blocks of 12 x 20, ordered, half", DType::kHalf, false, ragged, 9, random);
  check("blocks of 16, tf32", DType::kFloat, true, even, 5, random);
  check("blocks of 12 x 20, ordered, float", DType::kFloat, false, ragged, 7, random);
}

}  // namespace driver
