#include "cpu/saliency.h"

#include <tuple>

#include "bindings/binding.h"

namespace snipkern {
namespace {

constexpr int64_t kLargestKey = 0x7fffffff;

Operand operand(const char* op, const Tensor& tensor) {
  Operand result{};
  STD_TORCH_CHECK(tensor.dim() <= Operand::kMaxDims, op, ": tensors must have at most 64 dimensions (got ",
                  tensor.dim(), ")");
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
  bool same = weight.dim() == gradient.dim();
  for (int64_t d = 0; same && d < weight.dim(); ++d) same = weight.size(d) == gradient.size(d);
  STD_TORCH_CHECK(same, op, ": gradient must have the weight's shape");
  return {operand(op, weight), operand(op, gradient), weight.numel()};
}

void check_interval(const char* op, int64_t low, int64_t high) {
  STD_TORCH_CHECK(-1 <= low && low <= high && high <= kLargestKey, op,
                  ": low and high must satisfy -1 <= low <= high < 2^31 (got ", low, ", ", high, ")");
}

void check_ties(const char* op, int64_t threshold, int64_t ties) {
  STD_TORCH_CHECK(-1 <= threshold && threshold <= kLargestKey && ties >= 0, op,
                  ": threshold must be a key and ties not negative (got ", threshold, ", ", ties, ")");
}

Tensor saliency_sample_cpu(const Tensor& weight, const Tensor& gradient, const Tensor& starts, int64_t width) {
  constexpr const char* kOp = "saliency_sample";
  const Saliency call = saliency(kOp, weight, gradient);
  STD_TORCH_CHECK(starts.scalar_type() == ScalarType::Long && starts.dim() == 1, kOp,
                  ": starts must be a 1-D int64 tensor");
  STD_TORCH_CHECK(width > 0, kOp, ": width must be positive (got ", width, ")");
  const Tensor positions = as_contiguous(starts);
  const int64_t count = positions.numel();
  const int64_t* from = positions.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < count; ++i) {
    STD_TORCH_CHECK(0 <= from[i] && from[i] < call.numel, kOp, ": starts must be flat indices below ", call.numel,
                    " (got ", from[i], ")");
  }
  Tensor keys = torch::stable::new_empty(weight, {count, width}, ScalarType::Int);
  saliency_sample(call, from, count, width, keys.mutable_data_ptr<int32_t>(), run_tasks);
  return keys;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> saliency_partition_cpu(const Tensor& weight, const Tensor& gradient,
                                                                  int64_t low, int64_t high, int64_t capacity) {
  constexpr const char* kOp = "saliency_partition";
  const Saliency call = saliency(kOp, weight, gradient);
  check_interval(kOp, low, high);
  STD_TORCH_CHECK(capacity >= 0, kOp, ": capacity must not be negative (got ", capacity, ")");
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
  check_interval(kOp, low, high);
  STD_TORCH_CHECK(low >= 0 && 0 <= shift && shift < 31 && (high - low) >> shift < kMaxBins, kOp,
                  ": low must not be negative and shift leave at most 4096 bins (got ", low, ", ", high, ", ", shift,
                  ")");
  Tensor counts = torch::stable::new_zeros(weight, {((high - low) >> shift) + 1}, ScalarType::Long);
  saliency_histogram(call, static_cast<int32_t>(low), static_cast<int32_t>(high), static_cast<int>(shift),
                     counts.mutable_data_ptr<int64_t>(), run_tasks);
  return counts;
}

Tensor saliency_mask_cpu(const Tensor& weight, const Tensor& gradient, int64_t threshold, int64_t ties) {
  constexpr const char* kOp = "saliency_mask";
  const Saliency call = saliency(kOp, weight, gradient);
  check_ties(kOp, threshold, ties);
  Tensor words = torch::stable::new_empty(weight, {word_count(call.numel)}, ScalarType::Long);
  saliency_mask(call, static_cast<int32_t>(threshold), ties, words.mutable_data_ptr<int64_t>(), run_tasks);
  return words;
}

void saliency_resolve_cpu(const Tensor& words, const Tensor& keys, const Tensor& index, int64_t threshold,
                          int64_t ties) {
  constexpr const char* kOp = "saliency_resolve_";
  STD_TORCH_CHECK(words.scalar_type() == ScalarType::Long && words.dim() == 1 && words.is_contiguous(), kOp,
                  ": words must be a contiguous 1-D int64 tensor");
  STD_TORCH_CHECK(keys.scalar_type() == ScalarType::Int && index.scalar_type() == ScalarType::Long && keys.dim() == 1 &&
                      index.dim() == 1 && keys.numel() == index.numel(),
                  kOp, ": keys and index must be 1-D, int32 and int64, of one length (got ", keys.numel(), ", ",
                  index.numel(), ")");
  check_ties(kOp, threshold, ties);
  const Tensor candidate_keys = as_contiguous(keys), candidate_index = as_contiguous(index);
  const int64_t* from = candidate_index.const_data_ptr<int64_t>();
  const int64_t bits = words.numel() * kWordBits;
  for (int64_t i = 0; i < index.numel(); ++i) {
    STD_TORCH_CHECK(0 <= from[i] && from[i] < bits, kOp, ": index must be below ", bits, " (got ", from[i], ")");
  }
  saliency_resolve(candidate_keys.const_data_ptr<int32_t>(), from, index.numel(), static_cast<int32_t>(threshold), ties,
                   static_cast<int64_t*>(words.mutable_data_ptr()));
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
