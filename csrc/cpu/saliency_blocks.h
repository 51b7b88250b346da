// What the saliency kernels and their tiers' loops share: elements come in chunks of blocks of 64, one mask word each.
#pragma once

#include <cstdint>

#include "cpu/saliency.h"

namespace snipkern {

constexpr int64_t kChunk = 2048;           // elements at a time: the buffers stay in L1 and L2
constexpr int64_t kTask = 1 << 16;         // elements of a task
constexpr int64_t kLargestTask = 1 << 19;  // of one that reads columns
constexpr int kSumLanes = 16;  // of a row's sum: lane l adds elements l, l + 16, ..., the lanes are added in order

// A chunk's elements against an interval.
struct Classes {
  uint64_t above[kChunk / kWordBits], inside[kChunk / kWordBits];
  alignas(64) int32_t keys[kChunk];
  int64_t above_count, inside_count;
  int32_t largest = 0;  // of all chunks so far
};

// One tier's loops for one kind of score, by dtype. Both tensors are of that dtype; float64 has no loops of its own.
// They run over `blocks` blocks of 64 elements.
struct SaliencyKernels {
  void (*widen[4])(const void* from, int64_t count, float* to);
  void (*classify[4])(const void* weight, const void* gradient, int64_t blocks, int32_t low, int32_t high,
                      Classes& classes);
  // bin[i] = (key - low) >> shift, or `outside` where key - low > range as unsigned.
  void (*bins[4])(const void* weight, const void* gradient, int64_t blocks, int32_t low, uint32_t range, int shift,
                  uint32_t outside, uint32_t* bin);
  void (*scores[4])(const void* weight, const void* gradient, int64_t blocks, float* score);

  // to[i] = from[i] * (row * col[i]).
  void (*scale)(const float* from, float row, const float* col, int64_t count, float* to);
  // sums[i] += score[i] * factor, the product in float.
  void (*add)(const float* score, float factor, int64_t count, double* sums);
  // Adds score[i] * col[i], the product in float, to lane i % kSumLanes.
  void (*add_lanes)(const float* score, const float* col, int64_t count, double* lanes);
};

// Elements of a task: of transposed tensors, enough rows to use whole cache lines, several of each page. A multiple of kChunk.
inline int64_t task_size(const Saliency& call) {
  constexpr int64_t kRows = 64;
  if (!is_transposed(call.weight) && !is_transposed(call.gradient)) return kTask;
  const int64_t wanted = (kRows * call.cols + kChunk - 1) / kChunk * kChunk;
  return wanted < kTask ? kTask : wanted > kLargestTask ? kLargestTask : wanted;
}

// Those of the tier in use.
SaliencyKernels kernels_of(Score score);

// The key of a score, given by its bits.
inline int32_t key_of(int32_t bits, Score score) {
  if (score == Score::kSnip || score == Score::kMagnitude) return bits & 0x7fffffff;
  if (bits == INT32_MIN) return 0;
  return bits ^ ((bits >> 31) & 0x7fffffff);
}

// Keeps the lowest `count` set bits of words[0 .. size).
inline void keep_first(uint64_t* words, int64_t size, int64_t count) {
  for (int64_t i = 0; i < size; ++i) {
    const int64_t set = __builtin_popcountll(words[i]);
    if (set > count) {
      uint64_t rest = words[i];
      for (int64_t k = 0; k < count; ++k) rest &= rest - 1;
      words[i] ^= rest;
      count = 0;
    } else {
      count -= set;
    }
  }
}

}  // namespace snipkern
