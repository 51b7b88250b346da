#include "cpu/saliency.h"

#include <tuple>

#include "bindings/binding.h"

namespace snipkern {
namespace {

constexpr int64_t kLargestKey = 0x7fffffff;

Operand operand(const char* op, const Tensor& tensor) {
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

Saliency saliency(const char* op, const Tensor& weight, const Tensor& gradient) {
  require_float(op, "weight", weight);
  require_float(op, "gradient", gradient);
  bool same = weight.dim() == gradient.dim();
  for (int64_t d = 0; same && d < weight.dim(); ++d) same = weight.size(d) == gradient.size(d);
  SNIPKERN_REQUIRE(same, op, Sizes{gradient} << " on cpu",
                   "gradient must have the weight's shape and device, " << Sizes{weight} << " on cpu");
  return {operand(op, weight), operand(op, gradient), weight.numel()};
}

// Prints like Python's tuple.
template <typename... Rest>
std::string tuple_text(int64_t first, Rest... rest) {
  std::ostringstream out;
  out << "(" << first;
  ((out << ", " << rest), ...);
  out << ")";
  return out.str();
}

void require_interval(const char* op, int64_t low, int64_t high) {
  SNIPKERN_REQUIRE(-1 <= low && low <= high && high <= kLargestKey, op, tuple_text(low, high),
                   "low and high must satisfy -1 <= low <= high < 2^31");
}

void require_ties(const char* op, int64_t threshold, int64_t ties) {
  SNIPKERN_REQUIRE(-1 <= threshold && threshold <= kLargestKey && ties >= 0, op, tuple_text(threshold, ties),
                   "threshold must be a key and ties not negative");
}

// All of a 1-D int64 tensor's elements are in [0, end).
void require_below(const char* op, const char* what, const Tensor& index, int64_t end) {
  const int64_t* from = index.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < index.numel(); ++i) {
    SNIPKERN_REQUIRE(0 <= from[i] && from[i] < end, op, "[" << from[i] << "]", what << " must be below " << end);
  }
}

Tensor saliency_sample_cpu(const Tensor& weight, const Tensor& gradient, const Tensor& starts, int64_t width) {
  constexpr const char* kOp = "saliency_sample";
  const Saliency call = saliency(kOp, weight, gradient);
  SNIPKERN_REQUIRE(starts.scalar_type() == ScalarType::Long && starts.dim() == 1, kOp,
                   starts.dim() << "-D " << DTypeName{starts.scalar_type()}, "starts must be a 1-D int64 tensor");
  SNIPKERN_REQUIRE(width > 0, kOp, width, "width must be positive");
  const Tensor from = as_contiguous(starts);
  require_below(kOp, "starts", from, call.numel);
  Tensor keys = torch::stable::new_empty(weight, {from.numel(), width}, ScalarType::Int);
  saliency_sample(call, from.const_data_ptr<int64_t>(), from.numel(), width, keys.mutable_data_ptr<int32_t>(),
                  run_tasks);
  return keys;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> saliency_partition_cpu(const Tensor& weight, const Tensor& gradient,
                                                                  int64_t low, int64_t high, int64_t capacity) {
  constexpr const char* kOp = "saliency_partition";
  const Saliency call = saliency(kOp, weight, gradient);
  require_interval(kOp, low, high);
  SNIPKERN_REQUIRE(capacity >= 0, kOp, capacity, "capacity must not be negative");
  Tensor words = torch::stable::new_empty(weight, {word_count(call.numel)}, ScalarType::Long);
  Partition partition = saliency_partition(call, static_cast<int32_t>(low), static_cast<int32_t>(high), capacity,
                                           words.mutable_data_ptr<int64_t>(), run_tasks);
  const int64_t listed = partition.inside <= capacity ? partition.inside : 0;
  Tensor keys = torch::stable::new_empty(weight, {listed}, ScalarType::Int);
  Tensor index = torch::stable::new_empty(weight, {listed}, ScalarType::Long);
  take_candidates(partition, keys.mutable_data_ptr<int32_t>(), index.mutable_data_ptr<int64_t>());
  Tensor counts = torch::stable::new_empty(weight, {3}, ScalarType::Long);
  int64_t* count = counts.mutable_data_ptr<int64_t>();
  count[0] = partition.above;
  count[1] = partition.inside;
  count[2] = partition.largest;
  return {words, keys, index, counts};
}

Tensor saliency_histogram_cpu(const Tensor& weight, const Tensor& gradient, int64_t low, int64_t high, int64_t shift) {
  constexpr const char* kOp = "saliency_histogram";
  const Saliency call = saliency(kOp, weight, gradient);
  require_interval(kOp, low, high);
  SNIPKERN_REQUIRE(low >= 0 && 0 <= shift && shift < 31 && (high - low) >> shift < kMaxBins, kOp,
                   tuple_text(low, high, shift),
                   "low must not be negative and shift leave at most " << kMaxBins << " bins");
  Tensor counts = torch::stable::new_zeros(weight, {((high - low) >> shift) + 1}, ScalarType::Long);
  saliency_histogram(call, static_cast<int32_t>(low), static_cast<int32_t>(high), static_cast<int>(shift),
                     counts.mutable_data_ptr<int64_t>(), run_tasks);
  return counts;
}

Tensor saliency_mask_cpu(const Tensor& weight, const Tensor& gradient, int64_t threshold, int64_t ties) {
  constexpr const char* kOp = "saliency_mask";
  const Saliency call = saliency(kOp, weight, gradient);
  require_ties(kOp, threshold, ties);
  Tensor words = torch::stable::new_empty(weight, {word_count(call.numel)}, ScalarType::Long);
  saliency_mask(call, static_cast<int32_t>(threshold), ties, words.mutable_data_ptr<int64_t>(), run_tasks);
  return words;
}

void saliency_resolve_cpu(const Tensor& words, const Tensor& keys, const Tensor& index, int64_t threshold,
                          int64_t ties) {
  constexpr const char* kOp = "saliency_resolve_";
  SNIPKERN_REQUIRE(words.scalar_type() == ScalarType::Long && words.dim() == 1 && words.is_contiguous(), kOp,
                   words.dim() << "-D " << DTypeName{words.scalar_type()},
                   "words must be a contiguous 1-D int64 tensor");
  SNIPKERN_REQUIRE(keys.scalar_type() == ScalarType::Int && index.scalar_type() == ScalarType::Long &&
                       keys.dim() == 1 && index.dim() == 1,
                   kOp,
                   keys.dim() << "-D " << DTypeName{keys.scalar_type()} << ", " << index.dim() << "-D "
                              << DTypeName{index.scalar_type()},
                   "keys and index must be 1-D, int32 and int64");
  require_ties(kOp, threshold, ties);
  SNIPKERN_REQUIRE(keys.numel() == index.numel(), kOp, keys.numel() << ", " << index.numel(),
                   "keys and index must have one length");
  const Tensor listed_keys = as_contiguous(keys), listed_index = as_contiguous(index);
  require_below(kOp, "index", listed_index, words.numel() * kWordBits);
  saliency_resolve(listed_keys.const_data_ptr<int32_t>(), listed_index.const_data_ptr<int64_t>(), index.numel(),
                   static_cast<int32_t>(threshold), ties, static_cast<int64_t*>(words.mutable_data_ptr()));
}

}  // namespace
}  // namespace snipkern

STABLE_TORCH_LIBRARY_IMPL(snipkern, CPU, m) {
  m.impl("saliency_sample", TORCH_BOX(&snipkern::saliency_sample_cpu));
  m.impl("saliency_partition", TORCH_BOX(&snipkern::saliency_partition_cpu));
  m.impl("saliency_histogram", TORCH_BOX(&snipkern::saliency_histogram_cpu));
  m.impl("saliency_mask", TORCH_BOX(&snipkern::saliency_mask_cpu));
  m.impl("saliency_resolve_", TORCH_BOX(&snipkern::saliency_resolve_cpu));
}
