// Counting, collecting and marking weights by a saliency score, one pass over weights and gradients each.
//
// A score is the float32 product of its factors, each first converted to float32; its *key* is an int32
// that orders like the scores. An overflow gives an infinity; what is beyond comes from a NaN. Bit i % 64
// of word i / 64 belongs to element i of the row-major flat sequence; bits past the end are zero. Nothing
// here depends on the thread count.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "cpu/operand.h"
#include "cpu/tasks.h"

namespace snipkern {

// |w g|, |w|, w (w h) with the gradient's place taken by h, and w g. The last two can be negative: their
// keys are the float's bits with the lower 31 flipped where negative, and -0 is 0.
enum class Score { kSnip, kMagnitude, kObd, kSigned };
constexpr int kScores = 4;

struct Saliency {
  Operand weight, gradient;  // of equal sizes, with merged dimensions; magnitudes read no gradient
  int64_t numel;
  Score score = Score::kSnip;
  int64_t rows, cols;  // the weight as a matrix: its first dimension, all others
  // With scales, weight (i, j) counts as w * (row_scale[i] * col_scale[j]).
  const float *row_scale = nullptr, *col_scale = nullptr;  // both or none
};

constexpr int64_t kWordBits = 64;
constexpr int64_t kMaxBins = 65536;

inline int64_t word_count(int64_t numel) { return (numel + kWordBits - 1) / kWordBits; }

// keys[i * width + j]: the key of element (starts[i] + j) % numel.
void saliency_sample(const Saliency& call, const int64_t* starts, int64_t count, int64_t width, int32_t* keys,
                     const TaskRunner& run);

// Keys against an interval [low, high].
struct Partition {
  struct Run {                                // of neighbouring elements
    std::unique_ptr<int32_t[]> keys_offsets;  // [2, count]
    int64_t count = 0;
  };
  int64_t task_size = 0;  // elements that a run covers
  std::vector<Run> runs;  // the elements inside the interval, if there are at most `capacity`
  int64_t above = 0;      // keys > high; their bits are set in `words`
  int64_t inside = 0;     // low <= key <= high
  int32_t largest = 0;    // the largest absolute value's bits
};
Partition saliency_partition(const Saliency& call, int32_t low, int32_t high, int64_t capacity, int64_t* words,
                             const TaskRunner& run);

// Lists the inside elements in ascending order of their flat index; frees the runs.
void take_candidates(Partition& partition, int32_t* keys, int64_t* index);

// Adds to counts[(key - low) >> shift] for every key in [low, high].
void saliency_histogram(const Saliency& call, int32_t low, int32_t high, int shift, int64_t* counts,
                        const TaskRunner& run);

// Sets the bits of all keys > threshold and of the first `ties` elements whose key equals it.
void saliency_mask(const Saliency& call, int32_t threshold, int64_t ties, int64_t* words, const TaskRunner& run);

// The same for `count` listed elements, in list order: sets their bits in `words`.
void saliency_resolve(const int32_t* keys, const int64_t* index, int64_t count, int32_t threshold, int64_t ties,
                      int64_t* words);

}  // namespace snipkern
