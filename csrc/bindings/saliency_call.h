// Arguments that the saliency ops share, checked and as the kernels take them.
#pragma once

#include <sstream>
#include <string>

#include "bindings/binding.h"
#include "cpu/saliency.h"

namespace snipkern {

inline Operand operand(const char* op, const Tensor& tensor) {
  SNIPKERN_REQUIRE(tensor.dim() <= Operand::kMaxDims, op, tensor.dim(), "tensors must have at most 64 dimensions");
  Operand result{};
  result.dtype = kernel_dtype(op, tensor);
  result.data = tensor.const_data_ptr();
  result.dims = static_cast<int>(tensor.dim());
  for (int d = 0; d < result.dims; ++d) {
    result.sizes[d] = tensor.size(d);
    result.strides[d] = tensor.stride(d);
  }
  merge_dims(result);
  return result;
}

// The tensors stay the caller's.
inline Saliency saliency(const char* op, const Tensor& weight, const std::optional<Tensor>& gradient, int64_t score) {
  require_float(op, "weight", weight);
  SNIPKERN_REQUIRE(0 <= score && score < kScores, op, score, "score must be 0, 1, 2 or 3");
  const bool magnitude = score == static_cast<int64_t>(Score::kMagnitude);
  SNIPKERN_REQUIRE(gradient.has_value() || magnitude, op, "none", "gradient must be given for this score");
  Saliency call{};
  if (gradient.has_value()) {
    require_float(op, "gradient", *gradient);
    bool same = weight.dim() == gradient->dim();
    for (int64_t d = 0; same && d < weight.dim(); ++d) same = weight.size(d) == gradient->size(d);
    SNIPKERN_REQUIRE(same, op, Sizes{*gradient} << " on cpu",
                     "gradient must have the weight's shape and device, " << Sizes{weight} << " on cpu");
  }
  call.weight = operand(op, weight);
  call.gradient = magnitude ? call.weight : operand(op, *gradient);
  call.numel = weight.numel();
  call.score = static_cast<Score>(score);
  call.rows = weight.dim() == 0 ? 1 : weight.size(0);
  call.cols = 1;
  for (int64_t d = 1; d < weight.dim(); ++d) call.cols *= weight.size(d);
  return call;
}

inline void require_scale(const char* op, const char* what, const Tensor& scale, int64_t size) {
  SNIPKERN_REQUIRE(scale.scalar_type() == ScalarType::Float && scale.dim() == 1 && scale.size(0) == size, op,
                   Sizes{scale} << " " << DTypeName{scale.scalar_type()}, what << " must be float32 [" << size << "]");
}

// Row and column scales of a call, contiguous and kept alive. One of them alone comes with ones for the other.
class Scales {
 public:
  Scales(const char* op, const std::optional<Tensor>& row, const std::optional<Tensor>& col, Saliency& call) {
    if (row.has_value()) require_scale(op, "row_scale", *row, call.rows);
    if (col.has_value()) require_scale(op, "col_scale", *col, call.cols);
    if (!row.has_value() && !col.has_value()) return;
    call.row_scale = data(row, call.rows, row_);
    call.col_scale = data(col, call.cols, col_);
  }

 private:
  const float* data(const std::optional<Tensor>& given, int64_t size, std::optional<Tensor>& kept) {
    if (!given.has_value()) {
      ones_.assign(size + 1, 1.0f);
      return ones_.data();
    }
    kept = as_contiguous(*given);
    return kept->const_data_ptr<float>();
  }

  std::optional<Tensor> row_, col_;
  std::vector<float> ones_;
};

// Prints like Python's tuple.
template <typename... Rest>
std::string tuple_text(int64_t first, Rest... rest) {
  std::ostringstream out;
  out << "(" << first;
  ((out << ", " << rest), ...);
  out << ")";
  return out.str();
}

}  // namespace snipkern
