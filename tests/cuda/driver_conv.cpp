// Convolutions with single weights and with whole blocks, and their gradients.
#include "cuda/conv2d_bsr.h"
#include "cuda/conv2d_csr.h"
#include "driver_blocks.h"
#include "driver_lists.h"

namespace driver {
namespace {

using namespace snipkern::cuda;
using snipkern::Conv2dShape;

int64_t out_size(const Conv2dShape& shape, int axis) {
  const int64_t reach = shape.dilation[axis] * (shape.kernel[axis] - 1) + 1;
  return (shape.size[axis] + 2 * shape.padding[axis] - reach) / shape.stride[axis] + 1;
}

// A convolution with a sparse weight, seen as [out_channels, in_channels * kernel height * kernel width].
struct Convolution {
  DType dtype;
  Conv2dShape shape;
  const Entries& mask;
  Tensor x, grad, values, bias;

  Convolution(DType dtype, const Conv2dShape& shape, const Entries& mask, Random& random)
      : dtype(dtype),
        shape(shape),
        mask(mask),
        x(dtype, shape.batch * shape.in_channels * shape.size[0] * shape.size[1], random),
        grad(dtype, shape.batch * shape.out_channels * shape.out_size[0] * shape.out_size[1], random),
        values(dtype, mask.nnz(), random),
        bias(dtype, shape.out_channels, random) {}

  // body(kept weight, place in x, place in y) for all pairs that the weight connects.
  template <typename Body>
  void each(const Body& body) const {
    const int64_t taps = shape.kernel[0] * shape.kernel[1];
    for (size_t k = 0; k < mask.row_of.size(); ++k) {
      const int64_t out = mask.row_of[k], in = mask.col_of[k] / taps, tap = mask.col_of[k] % taps;
      for (int64_t sample = 0; sample < shape.batch; ++sample) {
        for (int64_t i = 0; i < shape.out_size[0]; ++i) {
          const int64_t row = i * shape.stride[0] - shape.padding[0] + tap / shape.kernel[1] * shape.dilation[0];
          for (int64_t j = 0; j < shape.out_size[1]; ++j) {
            const int64_t col = j * shape.stride[1] - shape.padding[1] + tap % shape.kernel[1] * shape.dilation[1];
            if (row < 0 || row >= shape.size[0] || col < 0 || col >= shape.size[1]) continue;
            const int64_t source = ((sample * shape.in_channels + in) * shape.size[0] + row) * shape.size[1] + col;
            const int64_t target =
                ((sample * shape.out_channels + out) * shape.out_size[0] + i) * shape.out_size[1] + j;
            body(k, static_cast<size_t>(source), static_cast<size_t>(target));
          }
        }
      }
    }
  }

  std::vector<Sum> output() const {
    std::vector<Sum> sums(grad.numbers.size());
    const size_t pixels = static_cast<size_t>(shape.out_size[0] * shape.out_size[1]);
    for (size_t i = 0; i < sums.size(); ++i) sums[i].add(bias.numbers[i / pixels % bias.numbers.size()]);
    each([&](size_t k, size_t from, size_t to) { sums[to].add(x.numbers[from] * values.numbers[k]); });
    return sums;
  }

  std::vector<Sum> input_gradient() const {
    std::vector<Sum> sums(x.numbers.size());
    each([&](size_t k, size_t from, size_t to) { sums[from].add(grad.numbers[to] * values.numbers[k]); });
    return sums;
  }

  std::vector<Sum> weight_gradient() const {
    std::vector<Sum> sums(values.numbers.size());
    each([&](size_t k, size_t from, size_t to) { sums[k].add(grad.numbers[to] * x.numbers[from]); });
    return sums;
  }
};

// Runs one op: `room` tells the scratch memory that it wants.
template <typename Call, typename Room, typename Run>
void run(const std::string& name, Call call, const Room& room, const Run& op) {
  const Memory scratch(room(call));
  call.scratch = scratch.get();
  require_success(name, op(call, nullptr));
}

void check_csr(const std::string& name, DType dtype, const Conv2dShape& shape, const Lists& lists, Random& random) {
  const Convolution layer(dtype, shape, lists.entries, random);
  Tensor y(dtype, static_cast<int64_t>(layer.grad.numbers.size()));
  Conv2dCsr forward{};
  forward.dtype = dtype;
  forward.shape = shape;
  forward.x = layer.x.memory.get();
  forward.values = layer.values.memory.get();
  forward.bias = layer.bias.memory.get();
  forward.ptr = lists.ptr.as<int32_t>();
  forward.index = {lists.index.get(), true};
  forward.y = y.memory.get();
  require_success(name, conv2d_csr(forward, nullptr));
  require_close(name + ": conv2d_csr", y, layer.output());

  Tensor grad_x(dtype, static_cast<int64_t>(layer.x.numbers.size()));
  Conv2dCsrInputGrad input{};
  input.dtype = dtype;
  input.shape = shape;
  input.grad = layer.grad.memory.get();
  input.values = forward.values;
  input.ptr = lists.transposed_ptr.as<int32_t>();
  input.index = {lists.transposed_index.get(), true};
  input.order = lists.order.as<int32_t>();
  input.nnz = lists.entries.nnz();
  input.grad_x = grad_x.memory.get();
  run(name, input, conv2d_csr_input_grad_scratch, conv2d_csr_input_grad);
  require_close(name + ": conv2d_csr_input_grad", grad_x, layer.input_gradient());

  Tensor grad_values(dtype, lists.entries.nnz());
  Conv2dCsrWeightGrad weight{};
  weight.dtype = dtype;
  weight.shape = shape;
  weight.grad = input.grad;
  weight.x = forward.x;
  weight.ptr = forward.ptr;
  weight.index = forward.index;
  weight.nnz = input.nnz;
  weight.values = grad_values.memory.get();
  run(name, weight, conv2d_csr_weight_grad_scratch, conv2d_csr_weight_grad);
  require_close(name + ": conv2d_csr_weight_grad", grad_values, layer.weight_gradient());
}

void check_bsr(const std::string& name, DType dtype, const Conv2dShape& shape, const Blocks& blocks, Random& random) {
  const Convolution layer(dtype, shape, blocks.entries, random);
  Tensor y(dtype, static_cast<int64_t>(layer.grad.numbers.size()));
  Conv2dBsr forward{};
  forward.dtype = dtype;
  forward.shape = shape;
  forward.index = blocks.index;
  forward.x = layer.x.memory.get();
  forward.values = layer.values.memory.get();
  forward.bias = layer.bias.memory.get();
  forward.y = y.memory.get();
  run(name, forward, conv2d_bsr_scratch, conv2d_bsr);
  require_close(name + ": conv2d_bsr", y, layer.output());

  Tensor grad_x(dtype, static_cast<int64_t>(layer.x.numbers.size()));
  Conv2dBsrInputGrad input{};
  input.dtype = dtype;
  input.shape = shape;
  input.index = blocks.index;
  input.grad = layer.grad.memory.get();
  input.values = forward.values;
  input.grad_x = grad_x.memory.get();
  run(name, input, conv2d_bsr_input_grad_scratch, conv2d_bsr_input_grad);
  require_close(name + ": conv2d_bsr_input_grad", grad_x, layer.input_gradient());

  Tensor grad_values(dtype, blocks.entries.nnz());
  Conv2dBsrWeightGrad weight{};
  weight.dtype = dtype;
  weight.shape = shape;
  weight.index = blocks.index;
  weight.grad = input.grad;
  weight.x = forward.x;
  weight.values = grad_values.memory.get();
  run(name, weight, conv2d_bsr_weight_grad_scratch, conv2d_bsr_weight_grad);
  require_close(name + ": conv2d_bsr_weight_grad", grad_values, layer.weight_gradient());
}

}  // namespace

void run_cases(Random& random) {
  // batch, channels in and out, kernel, image, output, stride, padding, dilation
  Conv2dShape strided{2, 5, 24, {3, 2}, {9, 11}, {0, 0}, {2, 1}, {1, 2}, {1, 2}};
  Conv2dShape dense{1, 4, 32, {3, 3}, {8, 8}, {0, 0}, {1, 1}, {1, 1}, {1, 1}};
  for (Conv2dShape* shape : {&strided, &dense}) {
    for (int axis = 0; axis < 2; ++axis) shape->out_size[axis] = out_size(*shape, axis);
  }
  const Lists lists(24, 30, 0.3, random);
  check_csr("strided, float", DType::kFloat, strided, lists, random);
  check_csr("strided, half", DType::kHalf, strided, lists, random);
  const Blocks ragged(24, 30, 7, 9, false, random), even(32, 36, 16, 16, false, random);
  check_bsr("strided, blocks of 7 x 9, float", DType::kFloat, strided, ragged, random);
  check_bsr("blocks of 16, half", DType::kHalf, dense, even, random);
}

}  // namespace driver
