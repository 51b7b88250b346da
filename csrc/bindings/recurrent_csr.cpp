#include "cpu/recurrent_csr.h"

#include <tuple>

#include "bindings/binding.h"

namespace snipkern {
namespace {

using MaybeTensor = std::optional<Tensor>;

// The arguments that forward and backward share: checked, in the words of snipkern/ops/schema_recurrent.py, contiguous,
// and put into a call.
class RecurrentArguments {
 public:
  RecurrentCsr call{};
  Tensor x, h0;
  MaybeTensor c0, values_hr, bias_ih, bias_hh;
  Tensor values_ih, values_hh;

  RecurrentArguments(const char* op, const Tensor& given_x, const Tensor& given_sizes, const Tensor& given_h0,
                     const MaybeTensor& given_c0, const Tensor& given_ih, const Tensor& topology_ih,
                     const Tensor& given_hh, const Tensor& topology_hh, const MaybeTensor& given_hr,
                     const MaybeTensor& topology_hr, const MaybeTensor& given_bias_ih, const MaybeTensor& given_bias_hh,
                     int64_t mode, bool reverse) {
    require_float(op, "x", given_x);
    SNIPKERN_REQUIRE(0 <= mode && mode < 4, op, mode, "mode must be 0 (LSTM), 1 (GRU), 2 (RNN_TANH) or 3 (RNN_RELU)");
    const bool lstm = mode == 0;
    const char* const name = mode == 0 ? "LSTM" : mode == 1 ? "GRU" : mode == 2 ? "RNN_TANH" : "RNN_RELU";
    SNIPKERN_REQUIRE(given_x.dim() == 2, op, Sizes{given_x}, "x must be [rows, inputs]");
    SNIPKERN_REQUIRE(given_h0.dim() == 2, op, Sizes{given_h0}, "h0 must be [batch, outputs]");
    require_like(op, "h0", given_h0, given_x, "x");
    SNIPKERN_REQUIRE(given_c0.has_value() == lstm, op, name, "c0 must be given for an LSTM alone");
    const int64_t batch = given_h0.size(0), outputs = given_h0.size(1);
    int64_t hidden = outputs;
    if (lstm) {
      SNIPKERN_REQUIRE(given_c0->dim() == 2 && given_c0->size(0) == batch, op, Sizes{*given_c0},
                       "c0 must be [" << batch << ", hidden]");
      require_like(op, "c0", *given_c0, given_x, "x");
      hidden = given_c0->size(1);
    }
    SNIPKERN_REQUIRE(given_sizes.scalar_type() == ScalarType::Long && given_sizes.dim() == 1 && given_sizes.is_cpu(),
                     op, Sizes{given_sizes} << " " << DTypeName{given_sizes.scalar_type()},
                     "batch_sizes must be int64 [steps] on the CPU");
    SNIPKERN_REQUIRE(given_hr.has_value() == topology_hr.has_value() && (lstm || !given_hr.has_value()), op, name,
                     "values_hr and topology_hr must be given together, for an LSTM alone");
    SNIPKERN_REQUIRE(given_hr.has_value() || hidden == outputs, op, Sizes{given_h0},
                     "h0 must be [" << batch << ", " << hidden << "] without hr");
    call.dtype = kernel_dtype(op, given_x);
    call.cell = static_cast<Cell>(mode);
    call.reverse = reverse;
    call.batch = batch;
    call.inputs = given_x.size(1);
    call.hidden = hidden;
    call.outputs = outputs;
    const int64_t rows = cell_gates(call.cell) * hidden;
    values_ih = weight(op, given_ih, topology_ih, given_x, rows, call.inputs, call.ih);
    values_hh = weight(op, given_hh, topology_hh, given_x, rows, outputs, call.hh);
    if (given_hr.has_value()) values_hr = weight(op, *given_hr, *topology_hr, given_x, outputs, hidden, call.hr);
    require_bias(op, given_bias_ih, rows, given_x);
    require_bias(op, given_bias_hh, rows, given_x);
    take_sizes(op, as_contiguous(given_sizes), given_x.size(0));
    x = as_contiguous(given_x);
    h0 = as_contiguous(given_h0);
    if (lstm) c0 = as_contiguous(*given_c0);
    if (given_bias_ih.has_value()) bias_ih = as_contiguous(*given_bias_ih);
    if (given_bias_hh.has_value()) bias_hh = as_contiguous(*given_bias_hh);
    call.x = x.const_data_ptr();
    call.h0 = h0.const_data_ptr();
    call.c0 = data(c0);
    call.bias_ih = data(bias_ih);
    call.bias_hh = data(bias_hh);
  }

  static const void* data(const MaybeTensor& tensor) { return tensor.has_value() ? tensor->const_data_ptr() : nullptr; }

  int64_t saved_size() const {
    return recurrent_tiles(call.batch) * call.steps * cell_saved(call.cell) * call.hidden *
           recurrent_samples(call.batch);
  }

  ScalarType sums() const { return call.dtype == DType::kDouble ? ScalarType::Double : ScalarType::Float; }

 private:
  std::vector<int64_t> starts_;

  static Tensor weight(const char* op, const Tensor& values, const Tensor& topology, const Tensor& x, int64_t rows,
                       int64_t cols, RecurrentWeight& to) {
    require_values(op, values, x, "x");
    const TopologyView view(op, topology, values.numel(), rows, cols);
    Tensor contiguous = as_contiguous(values);
    to.values = contiguous.const_data_ptr();
    to.ptr = view.ptr;
    to.index = view.index;
    to.rows = rows;
    to.cols = cols;
    return contiguous;
  }

  void take_sizes(const char* op, const Tensor& sizes, int64_t rows) {
    const int64_t* size = sizes.const_data_ptr<int64_t>();
    call.steps = sizes.numel();
    starts_.assign(call.steps + 1, 0);
    bool falling = true;
    for (int64_t t = 0; t < call.steps; ++t) {
      falling = falling && size[t] >= (t + 1 < call.steps ? size[t + 1] : 0);
      starts_[t + 1] = starts_[t] + size[t];
    }
    const int64_t first = call.steps > 0 ? size[0] : call.batch, total = starts_[call.steps];
    SNIPKERN_REQUIRE(
        falling && first == call.batch && total == rows, op,
        first << " at first, " << total << " together" << (falling ? "" : ", not falling"),
        "batch_sizes must begin with " << call.batch << ", never rise, nor fall below 0, and add up to " << rows);
    call.starts = starts_.data();
  }
};

// Without steps, the last states are the first, and so are their gradients.
void copy_state(const Tensor& from, Tensor& to) {
  std::memcpy(to.mutable_data_ptr(), from.const_data_ptr(), static_cast<size_t>(to.numel()) * to.element_size());
}

std::tuple<Tensor, Tensor, Tensor, Tensor> recurrent_csr_cpu(
    const Tensor& x, const Tensor& batch_sizes, const Tensor& h0, const MaybeTensor& c0, const Tensor& values_ih,
    const Tensor& topology_ih, const Tensor& values_hh, const Tensor& topology_hh, const MaybeTensor& values_hr,
    const MaybeTensor& topology_hr, const MaybeTensor& bias_ih, const MaybeTensor& bias_hh, int64_t mode, bool reverse,
    bool save) {
  RecurrentArguments given("recurrent_csr", x, batch_sizes, h0, c0, values_ih, topology_ih, values_hh, topology_hh,
                           values_hr, topology_hr, bias_ih, bias_hh, mode, reverse);
  RecurrentCsr& call = given.call;
  Tensor output = new_output(x, {x.size(0), call.outputs});
  Tensor h_n = new_output(x, {call.batch, call.outputs});
  Tensor c_n = c0.has_value() ? new_output(x, {call.batch, call.hidden}) : new_output(x, {0});
  Tensor saved = torch::stable::new_empty(x, {save ? given.saved_size() : 0}, given.sums());
  prefer_huge_pages(saved.mutable_data_ptr(), static_cast<size_t>(saved.numel()) * saved.element_size());
  call.output = output.mutable_data_ptr();
  call.h_n = h_n.mutable_data_ptr();
  call.c_n = c_n.mutable_data_ptr();
  call.saved = save && saved.numel() > 0 ? saved.mutable_data_ptr() : nullptr;
  if (call.steps == 0) {
    copy_state(given.h0, h_n);
    if (c0.has_value()) copy_state(*given.c0, c_n);
  }
  recurrent_csr(call, run_tasks);
  return {output, h_n, c_n, saved};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> recurrent_csr_backward_cpu(
    const Tensor& grad_output, const Tensor& grad_h_n, const MaybeTensor& grad_c_n, const Tensor& x,
    const Tensor& batch_sizes, const Tensor& h0, const MaybeTensor& c0, const Tensor& values_ih,
    const Tensor& topology_ih, const Tensor& values_hh, const Tensor& topology_hh, const MaybeTensor& values_hr,
    const MaybeTensor& topology_hr, const MaybeTensor& bias_ih, const MaybeTensor& bias_hh, const Tensor& output,
    const Tensor& saved, int64_t mode, bool reverse, bool with_x) {
  constexpr const char* kOp = "recurrent_csr_backward";
  RecurrentArguments given(kOp, x, batch_sizes, h0, c0, values_ih, topology_ih, values_hh, topology_hh, values_hr,
                           topology_hr, bias_ih, bias_hh, mode, reverse);
  RecurrentCsr& forward = given.call;
  const auto require_size = [&](const char* what, const Tensor& tensor, int64_t rows, int64_t cols) {
    SNIPKERN_REQUIRE(tensor.dim() == 2 && tensor.size(0) == rows && tensor.size(1) == cols, kOp, Sizes{tensor},
                     what << " must be [" << rows << ", " << cols << "]");
    require_like(kOp, what, tensor, x, "x");
  };
  require_size("grad_output", grad_output, x.size(0), forward.outputs);
  require_size("output", output, x.size(0), forward.outputs);
  require_size("grad_h_n", grad_h_n, forward.batch, forward.outputs);
  SNIPKERN_REQUIRE(grad_c_n.has_value() == c0.has_value(), kOp,
                   (mode == 0   ? "LSTM"
                    : mode == 1 ? "GRU"
                    : mode == 2 ? "RNN_TANH"
                                : "RNN_RELU"),
                   "grad_c_n must be given for an LSTM alone");
  if (grad_c_n.has_value()) require_size("grad_c_n", *grad_c_n, forward.batch, forward.hidden);
  SNIPKERN_REQUIRE(saved.dim() == 1 && saved.numel() == given.saved_size() && saved.scalar_type() == given.sums(), kOp,
                   DTypeName{saved.scalar_type()} << " " << Sizes{saved},
                   "saved must be " << DTypeName{given.sums()} << " [" << given.saved_size()
                                    << "], what recurrent_csr returns with save");
  const Tensor dy = as_contiguous(grad_output), dh = as_contiguous(grad_h_n), y = as_contiguous(output);
  const Tensor kept = as_contiguous(saved);
  MaybeTensor dc;
  if (grad_c_n.has_value()) dc = as_contiguous(*grad_c_n);
  // Only read.
  forward.output = const_cast<void*>(y.const_data_ptr());
  forward.saved = const_cast<void*>(kept.const_data_ptr());
  const int64_t rows = forward.ih.rows;
  Tensor grad_x = with_x ? new_output(x, {x.size(0), forward.inputs}) : new_output(x, {0});
  Tensor grad_h0 = new_output(x, {forward.batch, forward.outputs});
  Tensor grad_c0 = c0.has_value() ? new_output(x, {forward.batch, forward.hidden}) : new_output(x, {0});
  Tensor grad_ih = new_output(x, {values_ih.numel()}), grad_hh = new_output(x, {values_hh.numel()});
  Tensor grad_hr = new_output(x, {values_hr.has_value() ? values_hr->numel() : 0});
  Tensor grad_bias_ih = new_output(x, {bias_ih.has_value() ? rows : 0});
  Tensor grad_bias_hh = new_output(x, {bias_hh.has_value() ? rows : 0});
  if (forward.steps == 0) {
    copy_state(dh, grad_h0);
    if (c0.has_value()) copy_state(*dc, grad_c0);
  }
  RecurrentCsrBackward call{};
  call.forward = forward;
  call.grad_output = dy.const_data_ptr();
  call.grad_h_n = dh.const_data_ptr();
  call.grad_c_n = RecurrentArguments::data(dc);
  call.grad_x = with_x ? grad_x.mutable_data_ptr() : nullptr;
  call.grad_h0 = grad_h0.mutable_data_ptr();
  call.grad_c0 = grad_c0.mutable_data_ptr();
  call.grad_ih = grad_ih.mutable_data_ptr();
  call.grad_hh = grad_hh.mutable_data_ptr();
  call.grad_hr = values_hr.has_value() ? grad_hr.mutable_data_ptr() : nullptr;
  call.grad_bias_ih = bias_ih.has_value() ? grad_bias_ih.mutable_data_ptr() : nullptr;
  call.grad_bias_hh = bias_hh.has_value() ? grad_bias_hh.mutable_data_ptr() : nullptr;
  recurrent_csr_backward(call, run_tasks);
  return {grad_x, grad_h0, grad_c0, grad_ih, grad_hh, grad_hr, grad_bias_ih, grad_bias_hh};
}

}  // namespace
}  // namespace snipkern

STABLE_TORCH_LIBRARY_IMPL(snipkern, CPU, m) {
  m.impl("recurrent_csr", TORCH_BOX(&snipkern::recurrent_csr_cpu));
  m.impl("recurrent_csr_backward", TORCH_BOX(&snipkern::recurrent_csr_backward_cpu));
}
