// Loops that are bound by one thing each: multiply-adds, or loads.
#include "cpu/simd.kernel.h"

namespace snipkern {
namespace SNIPKERN_TIER {
namespace {

constexpr int kSums = 12;  // enough to hide an FMA's latency, few enough for 16 registers
constexpr int kSteps = 64;

// Returns what must be used, or the compiler would drop the work.
inline float multiply_adds(int64_t passes) {
  Vec<float> sums[kSums] = {};
  Vec<float> factor = broadcast<Vec<float>>(0.5f), term = broadcast<Vec<float>>(1.0f);
  for (int64_t pass = 0; pass < passes; ++pass) {
    asm volatile("" : "+m"(factor), "+m"(term));  // else a clever compiler finds the limit of the series
    for (int step = 0; step < kSteps; ++step) {
      SNIPKERN_UNROLL for (int i = 0; i < kSums; ++i) sums[i] = multiply_add<float>(sums[i], factor, term);
    }
  }
  Vec<float> total = sums[0];
  SNIPKERN_UNROLL for (int i = 1; i < kSums; ++i) total += sums[i];
  return total[0];
}

inline double multiply_add_operations(int64_t passes) {
  return 2.0 * kLanes<float> * kSums * kSteps * static_cast<double>(passes);
}

// Reads `count` floats, a multiple of read_unit().
inline float read(const float* data, int64_t count, int64_t passes) {
  constexpr int kLoads = 8;
  Vec<float> sums[kLoads] = {};
  for (int64_t pass = 0; pass < passes; ++pass) {
    asm volatile("" : : "r"(data) : "memory");  // every pass reads anew
    for (int64_t at = 0; at < count; at += kLoads * kLanes<float>) {
      SNIPKERN_UNROLL for (int i = 0; i < kLoads; ++i) sums[i] += load(data + at + i * kLanes<float>);
    }
  }
  Vec<float> total = sums[0];
  SNIPKERN_UNROLL for (int i = 1; i < kLoads; ++i) total += sums[i];
  return total[0];
}

}  // namespace
}  // namespace SNIPKERN_TIER
}  // namespace snipkern
