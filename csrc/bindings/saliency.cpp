#include "cpu/saliency.h"

#include <tuple>

#include "bindings/saliency_call.h"

namespace snipkern {
namespace {

using MaybeTensor = std::optional<Tensor>;

void require_interval(const char* op, int64_t low, int64_t high) {
  SNIPKERN_REQUIRE(INT32_MIN <= low && low <= high && high <= INT32_MAX, op, tuple_text(low, high),
                   "low and high must satisfy -2^31 <= low <= high < 2^31");
}

void require_ties(const char* op, int64_t threshold, int64_t ties) {
  SNIPKERN_REQUIRE(INT32_MIN <= threshold && threshold <= INT32_MAX && ties >= 0, op, tuple_text(threshold, ties),
                   "threshold must be a key and ties not negative");
}

Tensor new_words(const Tensor& like, const Saliency& call) {
  Tensor words = torch::stable::new_empty(like, {word_count(call.numel)}, ScalarType::Long);
  prefer_huge_pages(words.mutable_data_ptr(), static_cast<size_t>(words.numel()) * sizeof(int64_t));
  return words;
}

// All of a 1-D int64 tensor's elements are in [0, end).
void require_below(const char* op, const char* what, const Tensor& index, int64_t end) {
  const int64_t* from = index.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < index.numel(); ++i) {
    SNIPKERN_REQUIRE(0 <= from[i] && from[i] < end, op, "[" << from[i] << "]", what << " must be below " << end);
  }
}

Tensor saliency_sample_cpu(const Tensor& weight, const MaybeTensor& gradient, const Tensor& starts, int64_t width,
                           int64_t score, const MaybeTensor& row_scale, const MaybeTensor& col_scale) {
  constexpr const char* kOp = "saliency_sample";
  Saliency call = saliency(kOp, weight, gradient, score);
  const Scales scales(kOp, row_scale, col_scale, call);
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

std::tuple<Tensor, Tensor, Tensor, Tensor> saliency_partition_cpu(const Tensor& weight, const MaybeTensor& gradient,
                                                                  int64_t low, int64_t high, int64_t capacity,
                                                                  int64_t score, const MaybeTensor& row_scale,
                                                                  const MaybeTensor& col_scale) {
  constexpr const char* kOp = "saliency_partition";
  Saliency call = saliency(kOp, weight, gradient, score);
  const Scales scales(kOp, row_scale, col_scale, call);
  require_interval(kOp, low, high);
  SNIPKERN_REQUIRE(capacity >= 0, kOp, capacity, "capacity must not be negative");
  Tensor words = new_words(weight, call);
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

Tensor saliency_histogram_cpu(const Tensor& weight, const MaybeTensor& gradient, int64_t low, int64_t high,
                              int64_t shift, int64_t score, const MaybeTensor& row_scale,
                              const MaybeTensor& col_scale) {
  constexpr const char* kOp = "saliency_histogram";
  Saliency call = saliency(kOp, weight, gradient, score);
  const Scales scales(kOp, row_scale, col_scale, call);
  require_interval(kOp, low, high);
  SNIPKERN_REQUIRE(0 <= shift && shift < 31 && (high - low) >> shift < kMaxBins, kOp, tuple_text(low, high, shift),
                   "shift must leave at most " << kMaxBins << " bins");
  Tensor counts = torch::stable::new_zeros(weight, {((high - low) >> shift) + 1}, ScalarType::Long);
  saliency_histogram(call, static_cast<int32_t>(low), static_cast<int32_t>(high), static_cast<int>(shift),
                     counts.mutable_data_ptr<int64_t>(), run_tasks);
  return counts;
}

Tensor saliency_mask_cpu(const Tensor& weight, const MaybeTensor& gradient, int64_t threshold, int64_t ties,
                         int64_t score, const MaybeTensor& row_scale, const MaybeTensor& col_scale) {
  constexpr const char* kOp = "saliency_mask";
  Saliency call = saliency(kOp, weight, gradient, score);
  const Scales scales(kOp, row_scale, col_scale, call);
  require_ties(kOp, threshold, ties);
  Tensor words = new_words(weight, call);
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
