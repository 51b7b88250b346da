// Counting, collecting and marking weights by saliency |w * g|, one pass over both tensors each.
//
// A score is the float32 product of both factors converted to float32, without its sign; its *key* is
// the score's bits as int32, which order like the scores. An overflow gives infinity, the largest
// legal key; anything above comes from a NaN. Bit i % 64 of word i / 64 belongs to element i of the
// row-major flat sequence; bits past the end are zero. Nothing here depends on the thread count.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/operand.h"
#include "cpu/tasks.h"

namespace snipkern {

struct Saliency {
  Operand weight, gradient;  // of equal sizes, with merged dimensions
  int64_t numel;
};

constexpr int64_t kWordBits = 64;
constexpr int64_t kMaxBins = 4096;

inline int64_t word_count(int64_t numel) { return (numel + kWordBits - 1) / kWordBits; }

// keys[i * width + j]: the key of element (starts[i] + j) % numel.
void saliency_sample(const Saliency& call, const int64_t* starts, int64_t count, int64_t width, int32_t* keys,
                     const TaskRunner& run);

// Keys against an interval [low, high], from -1 to 2^31 - 1.
struct Partition {
  struct Run {  // of neighbouring elements
    std::vector<int32_t> keys, offsets;
  };
  std::vector<Run> runs;  // the elements inside the interval, if there are at most `capacity`
  int64_t above = 0;      // keys > high; their bits are set in `words`
  int64_t inside = 0;     // low <= key <= high
  int32_t largest = 0;    // the largest key
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
