#include "cpu/saliency_sums.h"

#include <tuple>

#include "bindings/saliency_call.h"

namespace snipkern {
namespace {

using MaybeTensor = std::optional<Tensor>;

// Null for no order; else every element names one of `size` rows or columns, each once.
const int64_t* order_data(const char* op, const char* what, const MaybeTensor& order, int64_t size, MaybeTensor& kept) {
  if (!order.has_value()) return nullptr;
  SNIPKERN_REQUIRE(order->scalar_type() == ScalarType::Long && order->dim() == 1 && order->size(0) == size, op,
                   Sizes{*order} << " " << DTypeName{order->scalar_type()}, what << " must be int64 [" << size << "]");
  kept = as_contiguous(*order);
  const int64_t* at = kept->const_data_ptr<int64_t>();
  std::vector<bool> seen(size);
  for (int64_t i = 0; i < size; ++i) {
    SNIPKERN_REQUIRE(0 <= at[i] && at[i] < size && !seen[at[i]], op, at[i],
                     what << " must be a permutation of [0, " << size << ")");
    seen[at[i]] = true;
  }
  return at;
}

Tensor saliency_block_sums_cpu(const Tensor& weight, const MaybeTensor& gradient, int64_t block_height,
                               int64_t block_width, const MaybeTensor& row_order, const MaybeTensor& col_order,
                               int64_t score, const MaybeTensor& row_scale, const MaybeTensor& col_scale) {
  constexpr const char* kOp = "saliency_block_sums";
  Saliency call = saliency(kOp, weight, gradient, score);
  const Scales scales(kOp, row_scale, col_scale, call);
  SNIPKERN_REQUIRE(block_height > 0 && block_width > 0, kOp, tuple_text(block_height, block_width),
                   "block_height and block_width must be positive");
  const int64_t rows = call.rows, cols = call.cols;
  MaybeTensor kept_rows, kept_cols;
  const SaliencyBlocks grid{block_height, block_width, order_data(kOp, "row_order", row_order, rows, kept_rows),
                            order_data(kOp, "col_order", col_order, cols, kept_cols)};
  const int64_t grid_rows = rows / block_height + (rows % block_height != 0);
  const int64_t grid_cols = cols / block_width + (cols % block_width != 0);
  Tensor sums = torch::stable::new_empty(weight, {grid_rows, grid_cols}, ScalarType::Double);
  prefer_huge_pages(sums.mutable_data_ptr(), static_cast<size_t>(sums.numel()) * sizeof(double));
  saliency_block_sums(call, grid, sums.mutable_data_ptr<double>(), run_tasks);
  return sums;
}

std::tuple<Tensor, Tensor> saliency_sweep_cpu(const Tensor& weight, const MaybeTensor& gradient,
                                              const Tensor& col_scale, int64_t score) {
  constexpr const char* kOp = "saliency_sweep";
  const Saliency call = saliency(kOp, weight, gradient, score);
  require_scale(kOp, "col_scale", col_scale, call.cols);
  SNIPKERN_REQUIRE(score == static_cast<int64_t>(Score::kSnip) || score == static_cast<int64_t>(Score::kMagnitude), kOp,
                   score, "score must be 0 or 1, which is never negative");
  const Tensor from = as_contiguous(col_scale);
  Tensor row_to = torch::stable::new_empty(weight, {call.rows}, ScalarType::Float);
  Tensor col_to = torch::stable::new_empty(weight, {call.cols}, ScalarType::Float);
  saliency_sweep(call, from.const_data_ptr<float>(), row_to.mutable_data_ptr<float>(), col_to.mutable_data_ptr<float>(),
                 run_tasks);
  return {row_to, col_to};
}

}  // namespace
}  // namespace snipkern

STABLE_TORCH_LIBRARY_IMPL(snipkern, CPU, m) {
  m.impl("saliency_block_sums", TORCH_BOX(&snipkern::saliency_block_sums_cpu));
  m.impl("saliency_sweep", TORCH_BOX(&snipkern::saliency_sweep_cpu));
}
