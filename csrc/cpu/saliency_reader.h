// Serves a saliency call's elements to the tier's loops.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/memory.h"
#include "cpu/saliency_blocks.h"

namespace snipkern {

// Elements as blocks of 64: in place where both tensors lie dense in one dtype that has loops, else converted to
// float, the last block padded with zeros.
class Reader {
 public:
  // Reads in ascending order up to `end` fetch transposed tensors a task's size ahead; 0 fetches no more than is read.
  explicit Reader(const Saliency& call, int64_t end = 0)
      : kernels(kernels_of(call.score)),
        call_(call),
        end_(end),
        has_gradient_(call.score != Score::kMagnitude),
        direct_(is_dense(call.weight) && call.weight.dtype != DType::kDouble && call.row_scale == nullptr &&
                (!has_gradient_ || (is_dense(call.gradient) && call.weight.dtype == call.gradient.dtype))) {}

  const SaliencyKernels kernels;
  const void *weight = nullptr, *gradient = nullptr;
  int dtype = 0;
  int64_t blocks = 0;

  // Points at elements [begin, begin + count), count <= kChunk.
  void read(int64_t begin, int64_t count) {
    blocks = word_count(count);
    if (direct_ && count % kWordBits == 0) {
      dtype = static_cast<int>(call_.weight.dtype);
      weight = address(call_.weight, begin);
      gradient = has_gradient_ ? address(call_.gradient, begin) : nullptr;
    } else {
      dtype = static_cast<int>(DType::kFloat);
      weight = floats(call_.weight, begin, count, ahead_weight_, weights_);
      if (call_.row_scale != nullptr) weight = scaled(static_cast<const float*>(weight), begin, count);
      gradient = has_gradient_ ? floats(call_.gradient, begin, count, ahead_gradient_, gradients_) : nullptr;
    }
  }

  // Scores of elements [begin, begin + count), count <= kChunk; `to` has room for whole blocks.
  void scores(int64_t begin, int64_t count, float* to) {
    read(begin, count);
    kernels.scores[dtype](weight, gradient, blocks, to);
  }

  static const char* address(const Operand& operand, int64_t element) {
    return static_cast<const char*>(operand.data) + element * static_cast<int64_t>(element_size(operand.dtype));
  }

 private:
  // What was fetched of a transposed tensor.
  struct Ahead {
    Slot slot;
    int64_t begin = 0, end = 0;
    char* data = nullptr;
  };

  const void* fetched(const Operand& operand, int64_t begin, int64_t count, Ahead& ahead) {
    const int64_t size = static_cast<int64_t>(element_size(operand.dtype));
    if (begin < ahead.begin || begin + count > ahead.end) {
      const int64_t most = task_size(call_);
      ahead.begin = begin;
      ahead.end = std::min(end_, begin + most);
      ahead.data = scratch<char>(ahead.slot, most * size);
      gather(operand, begin, ahead.end - begin, ahead.data);
    }
    return ahead.data + (begin - ahead.begin) * size;
  }

  // Elements [begin, begin + count) as floats, zeros up to a whole block behind them.
  const float* floats(const Operand& operand, int64_t begin, int64_t count, Ahead& ahead, float* buffer) {
    const void* from = address(operand, begin);
    if (is_transposed(operand) && begin + count <= end_) {
      from = fetched(operand, begin, count, ahead);
    } else if (!is_dense(operand)) {
      gather(operand, begin, count, gathered_);
      from = gathered_;
    } else if (operand.dtype == DType::kFloat && count % kWordBits == 0) {
      return static_cast<const float*>(from);
    }
    kernels.widen[static_cast<int>(operand.dtype)](from, count, buffer);
    std::fill(buffer + count, buffer + word_count(count) * kWordBits, 0.0f);
    return buffer;
  }

  const float* scaled(const float* from, int64_t begin, int64_t count) {
    int64_t row = begin / call_.cols, col = begin % call_.cols;
    for (int64_t done = 0; done < count; ++row, col = 0) {
      const int64_t run = std::min(count - done, call_.cols - col);
      kernels.scale(from + done, call_.row_scale[row], call_.col_scale + col, run, weights_ + done);
      done += run;
    }
    return weights_;
  }

  const Saliency& call_;
  const int64_t end_;
  Ahead ahead_weight_{Slot::kPackedInput}, ahead_gradient_{Slot::kPackedGradient};
  const bool has_gradient_, direct_;
  alignas(64) float weights_[kChunk], gradients_[kChunk];
  alignas(64) char gathered_[kChunk * sizeof(double)];
};

}  // namespace snipkern
