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
  SNIPKERN_UNROLL for (int i = 0; i < kLanes<int32_t>; ++i) bits |= static_cast<uint64_t>(a[i] > b[i]) << i;
  return bits;
#endif
}

template <typename V>
inline __attribute__((always_inline)) Vec<float> absolute(V value) {
  return (Vec<float>)((IntVec)value & 0x7fffffff);
}

template <Score kScore, typename T>
inline __attribute__((always_inline)) Vec<float> score_of(const T* weight, const T* gradient) {
  const Vec<float> w = widen(weight);
  if constexpr (kScore == Score::kMagnitude) return absolute(w);
  if constexpr (kScore == Score::kSnip) return absolute(w * widen(gradient));
  if constexpr (kScore == Score::kObd) return w * (w * widen(gradient));
  if constexpr (kScore == Score::kSigned) return w * widen(gradient);
}

// See key_of().
template <Score kScore>
inline __attribute__((always_inline)) IntVec key(Vec<float> score) {
  IntVec bits = (IntVec)score;
  if constexpr (kScore == Score::kObd || kScore == Score::kSigned) {
    bits &= ~(IntVec)(bits == broadcast<IntVec>(INT32_MIN));
    bits ^= (bits >> 31) & 0x7fffffff;
  }
  return bits;
}

// The pass waits for memory alone. Asking for it this early crosses the page ends at which the processor's
// own prefetching stops, and goes on while candidates are being listed between chunks.
constexpr int64_t kPrefetchBytes = 4096;

template <typename T>
inline __attribute__((always_inline)) void prefetch_block(const T* from) {
  const char* ahead = reinterpret_cast<const char*>(from) + kPrefetchBytes;
  SNIPKERN_UNROLL for (size_t line = 0; line < kWordBits * sizeof(T); line += 64) __builtin_prefetch(ahead + line);
}

template <Score kScore, typename T>
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
    if constexpr (kScore != Score::kMagnitude) prefetch_block(g + block * kWordBits);
    SNIPKERN_UNROLL for (int v = 0; v < kWordBits / kN; ++v) {
      const int64_t i = block * kWordBits + v * kN;
      const Vec<float> score = score_of<kScore>(w + i, g + i);
      const IntVec k = key<kScore>(score), size = (IntVec)absolute(score);
      over |= greater(k, top) << (v * kN);
      under |= greater(bottom, k) << (v * kN);
      maximum = size > maximum ? size : maximum;
      store(classes.keys + i, k);
    }
    classes.above[block] = over;
    classes.inside[block] = ~(over | under);
    above += __builtin_popcountll(over);
    inside += __builtin_popcountll(~(over | under));
  }
  classes.above_count = above;
  classes.inside_count = inside;
  SNIPKERN_UNROLL for (int i = 0; i < kN; ++i) classes.largest = std::max<int32_t>(classes.largest, maximum[i]);
}

template <Score kScore, typename T>
void bins(const void* weight, const void* gradient, int64_t blocks, int32_t low, uint32_t range, int shift,
          uint32_t outside, uint32_t* bin) {
  constexpr int kN = kLanes<int32_t>;
  const T* w = static_cast<const T*>(weight);
  const T* g = static_cast<const T*>(gradient);
  for (int64_t i = 0; i < blocks * kWordBits; i += kN) {
    const Vec<uint32_t> distance =
        (Vec<uint32_t>)key<kScore>(score_of<kScore>(w + i, g + i)) - static_cast<uint32_t>(low);
    const Vec<uint32_t> is_inside = (Vec<uint32_t>)(distance <= range);
    store(bin + i, ((distance >> shift) & is_inside) | (outside & ~is_inside));
  }
}

template <Score kScore, typename T>
void scores(const void* weight, const void* gradient, int64_t blocks, float* score) {
  const T* w = static_cast<const T*>(weight);
  const T* g = static_cast<const T*>(gradient);
  for (int64_t i = 0; i < blocks * kWordBits; i += kLanes<float>) store(score + i, score_of<kScore>(w + i, g + i));
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

void scale(const float* from, float row, const float* col, int64_t count, float* to) {
  for (int64_t i = 0; i < count; ++i) to[i] = from[i] * (row * col[i]);
}

// Products are rounded to float before they are added as doubles, so that no tier fuses the two.
void add(const float* __restrict score, float factor, int64_t count, double* __restrict sums) {
  for (int64_t i = 0; i < count; ++i) sums[i] += static_cast<double>(score[i] * factor);
}

void add_lanes(const float* score, const float* col, int64_t count, double* lanes) {
  double sum[kSumLanes];
  std::memcpy(sum, lanes, sizeof(sum));
  int64_t i = 0;
  for (; i + kSumLanes <= count; i += kSumLanes) {
    for (int lane = 0; lane < kSumLanes; ++lane) sum[lane] += static_cast<double>(score[i + lane] * col[i + lane]);
  }
  for (int lane = 0; i + lane < count; ++lane) sum[lane] += static_cast<double>(score[i + lane] * col[i + lane]);
  std::memcpy(lanes, sum, sizeof(sum));
}

template <Score kScore, typename T>
void fill_in(SaliencyKernels& kernels, DType dtype) {
  const int at = static_cast<int>(dtype);
  kernels.widen[at] = widen_run<T>;
  kernels.classify[at] = classify<kScore, T>;
  kernels.bins[at] = bins<kScore, T>;
  kernels.scores[at] = scores<kScore, T>;
}

template <Score kScore>
SaliencyKernels kernels_for() {
  SaliencyKernels kernels{};
  fill_in<kScore, float>(kernels, DType::kFloat);
  fill_in<kScore, Half>(kernels, DType::kHalf);
  fill_in<kScore, BFloat16>(kernels, DType::kBFloat16);
  kernels.widen[static_cast<int>(DType::kDouble)] = widen_run<double>;
  kernels.scale = scale;
  kernels.add = add;
  kernels.add_lanes = add_lanes;
  return kernels;
}

SaliencyKernels saliency_kernels(Score score) {
  switch (score) {
    case Score::kMagnitude:
      return kernels_for<Score::kMagnitude>();
    case Score::kObd:
      return kernels_for<Score::kObd>();
    case Score::kSigned:
      return kernels_for<Score::kSigned>();
    default:
      return kernels_for<Score::kSnip>();
  }
}

}  // namespace
}  // namespace SNIPKERN_TIER
}  // namespace snipkern
