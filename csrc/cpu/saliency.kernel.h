// See saliency.cpp. Compiled once per ISA tier: the loops over elements, for blocks of 64.

#include "cpu/simd.kernel.h"

namespace snipkern {
namespace SNIPKERN_TIER {
namespace {

// Bit i: a[i] > b[i]. Vector extensions have no way to a bit mask.
inline __attribute__((always_inline)) uint64_t greater(IntVec a, IntVec b) {
#if SNIPKERN_VECTOR_BYTES == 64
  return _mm512_cmpgt_epi32_mask((__m512i)a, (__m512i)b);
#elif SNIPKERN_VECTOR_BYTES == 32
  return static_cast<uint32_t>(_mm256_movemask_ps((__m256)(a > b)));
#else
  uint64_t bits = 0;
  for (int i = 0; i < kLanes<int32_t>; ++i) bits |= static_cast<uint64_t>(a[i] > b[i]) << i;
  return bits;
#endif
}

template <typename T>
inline __attribute__((always_inline)) IntVec key(const T* weight, const T* gradient) {
  return (IntVec)(widen(weight) * widen(gradient)) & 0x7fffffff;
}

// The pass waits for memory alone. Asking for it this early crosses the page ends at which the processor's
// own prefetching stops, and goes on while candidates are being listed between chunks.
constexpr int64_t kPrefetchBytes = 4096;

template <typename T>
inline __attribute__((always_inline)) void prefetch_block(const T* from) {
  const char* ahead = reinterpret_cast<const char*>(from) + kPrefetchBytes;
  for (size_t line = 0; line < kWordBits * sizeof(T); line += 64) __builtin_prefetch(ahead + line);
}

template <typename T>
void classify(const void* weight, const void* gradient, int64_t blocks, int32_t low, int32_t high, Classes& classes) {
  constexpr int kN = kLanes<int32_t>;
  const T* w = static_cast<const T*>(weight);
  const T* g = static_cast<const T*>(gradient);
  const IntVec bottom = broadcast<IntVec>(low), top = broadcast<IntVec>(high);
  IntVec maximum{};
  int64_t above = 0, inside = 0;
  for (int64_t block = 0; block < blocks; ++block) {
    uint64_t over = 0, under = 0;
    prefetch_block(w + block * kWordBits);
    prefetch_block(g + block * kWordBits);
    for (int v = 0; v < kWordBits / kN; ++v) {
      const int64_t i = block * kWordBits + v * kN;
      const IntVec k = key(w + i, g + i);
      over |= greater(k, top) << (v * kN);
      under |= greater(bottom, k) << (v * kN);
      maximum = k > maximum ? k : maximum;
      store(classes.keys + i, k);
    }
    classes.above[block] = over;
    classes.inside[block] = ~(over | under);
    above += __builtin_popcountll(over);
    inside += __builtin_popcountll(~(over | under));
  }
  classes.above_count = above;
  classes.inside_count = inside;
  for (int i = 0; i < kN; ++i) classes.largest = std::max<int32_t>(classes.largest, maximum[i]);
}

template <typename T>
void bins(const void* weight, const void* gradient, int64_t blocks, int32_t low, uint32_t range, int shift,
          uint32_t outside, uint32_t* bin) {
  constexpr int kN = kLanes<int32_t>;
  const T* w = static_cast<const T*>(weight);
  const T* g = static_cast<const T*>(gradient);
  for (int64_t i = 0; i < blocks * kWordBits; i += kN) {
    const Vec<uint32_t> distance = (Vec<uint32_t>)key(w + i, g + i) - static_cast<uint32_t>(low);
    const Vec<uint32_t> is_inside = (Vec<uint32_t>)(distance <= range);
    store(bin + i, ((distance >> shift) & is_inside) | (outside & ~is_inside));
  }
}

template <typename T>
void widen_run(const void* from, int64_t count, float* to) {
  const T* values = static_cast<const T*>(from);
  if constexpr (std::is_same_v<T, double>) {
    for (int64_t i = 0; i < count; ++i) to[i] = static_cast<float>(values[i]);
  } else {
    constexpr int kN = kLanes<float>;
    int64_t i = 0;
    for (; i + kN <= count; i += kN) store(to + i, widen(values + i));
    if (i < count) {
      const Vec<float> last = widen_partial(values + i, static_cast<int>(count - i));
      std::memcpy(to + i, &last, (count - i) * sizeof(float));
    }
  }
}

SaliencyKernels saliency_kernels() {
  SaliencyKernels kernels{};
  kernels.widen[static_cast<int>(DType::kFloat)] = widen_run<float>;
  kernels.widen[static_cast<int>(DType::kDouble)] = widen_run<double>;
  kernels.widen[static_cast<int>(DType::kHalf)] = widen_run<Half>;
  kernels.widen[static_cast<int>(DType::kBFloat16)] = widen_run<BFloat16>;
  kernels.classify[static_cast<int>(DType::kFloat)] = classify<float>;
  kernels.classify[static_cast<int>(DType::kHalf)] = classify<Half>;
  kernels.classify[static_cast<int>(DType::kBFloat16)] = classify<BFloat16>;
  kernels.bins[static_cast<int>(DType::kFloat)] = bins<float>;
  kernels.bins[static_cast<int>(DType::kHalf)] = bins<Half>;
  kernels.bins[static_cast<int>(DType::kBFloat16)] = bins<BFloat16>;
  return kernels;
}

}  // namespace
}  // namespace SNIPKERN_TIER
}  // namespace snipkern
