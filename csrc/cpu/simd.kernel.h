// Vectors of one ISA tier: loads and stores that convert to and from the accumulation type, sums,
// transposes. GCC vector extensions with the tier's width, so that one source serves all tiers. No
// include guard: compiled once per tier and kernel file (see foreach_tier.h); everything is in an
// unnamed namespace of the tier.

namespace snipkern {
namespace SNIPKERN_TIER {
namespace {

template <typename A>
struct VecOf {
  typedef A type __attribute__((vector_size(SNIPKERN_VECTOR_BYTES)));
  typedef A unaligned __attribute__((vector_size(SNIPKERN_VECTOR_BYTES), aligned(sizeof(A)), may_alias));
};
template <typename A>
using Vec = typename VecOf<A>::type;
template <typename A>
constexpr int kLanes = SNIPKERN_VECTOR_BYTES / static_cast<int>(sizeof(A));

using IntVec = Vec<int32_t>;
typedef uint16_t HalfVec __attribute__((vector_size(SNIPKERN_VECTOR_BYTES / 2)));

template <typename V, typename S>
inline __attribute__((always_inline)) V broadcast(S value) {
  return value - V{};  // not 0 + value, which the compiler must really add, for the sake of -0
}

template <typename A>
inline __attribute__((always_inline)) Vec<A> load(const A* from) {
  return *reinterpret_cast<const typename VecOf<A>::unaligned*>(from);
}

template <typename A>
inline __attribute__((always_inline)) void store(A* to, Vec<A> value) {
  *reinterpret_cast<typename VecOf<A>::unaligned*>(to) = value;
}

// sum + a * b; the compiler contracts it to one FMA on every tier that has it.
template <typename A>
inline __attribute__((always_inline)) Vec<A> multiply_add(Vec<A> a, Vec<A> b, Vec<A> sum) {
  return sum + a * b;
}

inline Vec<float> widen(const BFloat16* from) {
  HalfVec raw;
  std::memcpy(&raw, from, sizeof(raw));
  return (Vec<float>)(__builtin_convertvector(raw, IntVec) << 16);
}

// Masked by all ones: the plain forms make GCC 12 warn of what it leaves uninitialised on purpose.
#if defined(__x86_64__) && SNIPKERN_VECTOR_BYTES == 64
inline Vec<float> widen(const Half* from) {
  __m256i raw;
  std::memcpy(&raw, from, sizeof(raw));
  return (Vec<float>)_mm512_maskz_cvtph_ps(0xffff, raw);
}
#elif defined(__x86_64__) && SNIPKERN_VECTOR_BYTES == 32
inline Vec<float> widen(const Half* from) {
  __m128i raw;
  std::memcpy(&raw, from, sizeof(raw));
  return (Vec<float>)_mm256_cvtph_ps(raw);
}
#else
// Exact for every half, subnormals, infinities and NaN included: the exponent is rebased by a
// multiplication.
inline Vec<float> widen(const Half* from) {
  HalfVec raw;
  std::memcpy(&raw, from, sizeof(raw));
  const IntVec bits = __builtin_convertvector(raw, IntVec);
  const IntVec magnitude = bits & 0x7fff;
  const Vec<float> scaled = (Vec<float>)(magnitude << 13) * 0x1p112f;
  const IntVec special = (IntVec)scaled | 0x7f800000;
  const IntVec finite = magnitude < 0x7c00;
  return (Vec<float>)(((finite & (IntVec)scaled) | (~finite & special)) | ((bits & 0x8000) << 16));
}
#endif

inline Vec<float> widen(const float* from) { return load(from); }
inline Vec<double> widen(const double* from) { return load(from); }

// Round to nearest even; NaN stays NaN.
inline void narrow(BFloat16* to, Vec<float> value) {
  const IntVec bits = (IntVec)value;
  const IntVec is_nan = (bits & 0x7fffffff) > 0x7f800000;
  const IntVec rounded = ((bits + 0x7fff + ((bits >> 16) & 1)) >> 16) & 0xffff;
  const IntVec nan = ((bits >> 16) & 0xffff) | 0x40;
  const HalfVec raw = __builtin_convertvector((is_nan & nan) | (~is_nan & rounded), HalfVec);
  std::memcpy(to, &raw, sizeof(raw));
}

// Round to nearest even; beyond 65519 to infinity; NaN stays NaN, whose payload the tiers may keep or drop. Neither way
// heeds a thread's flushing of denormals.
#if defined(__x86_64__) && SNIPKERN_VECTOR_BYTES == 64
inline void narrow(Half* to, Vec<float> value) {
  const __m256i raw = _mm512_maskz_cvtps_ph(0xffff, (__m512)value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  std::memcpy(to, &raw, sizeof(raw));
}
#elif defined(__x86_64__) && SNIPKERN_VECTOR_BYTES == 32
inline void narrow(Half* to, Vec<float> value) {
  const __m128i raw = _mm256_cvtps_ph((__m256)value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  std::memcpy(to, &raw, sizeof(raw));
}
#else
inline void narrow(Half* to, Vec<float> value) {
  const IntVec bits = (IntVec)value;
  const IntVec sign = (bits >> 16) & 0x8000;
  const IntVec magnitude = bits & 0x7fffffff;
  // Adding 0.5 aligns a subnormal's last bit with the last bit of the sum, which rounds it.
  const IntVec half_bits = IntVec{} + 0x3f000000;
  const IntVec subnormal = (IntVec)((Vec<float>)magnitude + (Vec<float>)half_bits) - half_bits;
  const IntVec normal = (magnitude + (0xfff - ((127 - 15) << 23)) + ((magnitude >> 13) & 1)) >> 13;
  const IntVec is_subnormal = magnitude < 0x38800000;
  const IntVec is_nan = magnitude > 0x7f800000;
  const IntVec is_large = magnitude >= 0x47800000;
  IntVec result = (is_subnormal & subnormal) | (~is_subnormal & normal);
  result = (~is_large & result) | (is_large & 0x7c00);
  result |= is_nan & 0x200;
  const HalfVec raw = __builtin_convertvector(result | sign, HalfVec);
  std::memcpy(to, &raw, sizeof(raw));
}
#endif

inline void narrow(float* to, Vec<float> value) { store(to, value); }
inline void narrow(double* to, Vec<double> value) { store(to, value); }

// The first `count` elements (0 < count <= lanes), zeros behind them.
template <typename T>
inline Vec<accumulator_t<T>> widen_partial(const T* from, int count) {
  constexpr int kN = kLanes<accumulator_t<T>>;
  if (count == kN) return widen(from);
  T padded[kN] = {};
  std::memcpy(padded, from, count * sizeof(T));
  return widen(padded);
}

// One element in the accumulation type.
template <typename T>
inline __attribute__((always_inline)) accumulator_t<T> widen_one(const T* from) {
  if constexpr (std::is_same_v<T, accumulator_t<T>>) {
    return *from;
  } else {
    return widen_partial(from, 1)[0];
  }
}

inline __attribute__((always_inline)) float widen_one(const BFloat16* from) {
  const uint32_t bits = static_cast<uint32_t>(from->bits) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

template <typename T>
inline void narrow_partial(T* to, Vec<accumulator_t<T>> value, int count) {
  constexpr int kN = kLanes<accumulator_t<T>>;
  if (count == kN) return narrow(to, value);
  T padded[kN];
  narrow(padded, value);
  std::memcpy(to, padded, count * sizeof(T));
}

// Elements [begin, end) in another type, by way of the accumulation type.
template <typename From, typename To>
inline void convert(const From* from, int64_t begin, int64_t end, To* to) {
  constexpr int kN = kLanes<accumulator_t<From>>;
  for (int64_t i = begin; i < end; i += kN) {
    const int count = static_cast<int>(std::min<int64_t>(kN, end - i));
    narrow_partial(to + i, widen_partial(from + i, count), count);
  }
}

// Lanes 2i and 2i + 1 come from lane i of a and of b, counted from the lower (or, with kUpper, upper) half.
template <bool kUpper, typename A, int... kLane>
inline __attribute__((always_inline)) Vec<A> interleave(Vec<A> a, Vec<A> b, std::integer_sequence<int, kLane...>) {
  constexpr int kN = kLanes<A>;
  constexpr int kFirst = kUpper ? kN / 2 : 0;
#if defined(__clang__)
  return __builtin_shufflevector(a, b, (kFirst + kLane / 2 + (kLane % 2) * kN)...);
#else  // GCC knows __builtin_shufflevector from version 12 on
  using Index = std::conditional_t<sizeof(A) == 4, int32_t, int64_t>;
  return __builtin_shuffle(a, b, Vec<Index>{(kFirst + kLane / 2 + (kLane % 2) * kN)...});
#endif
}

// a0 b0 a1 b1 ... of the lower (or, with kUpper, upper) halves.
template <bool kUpper, typename A>
inline __attribute__((always_inline)) Vec<A> interleave(Vec<A> a, Vec<A> b) {
  return interleave<kUpper, A>(a, b, std::make_integer_sequence<int, kLanes<A>>{});
}

// In-place transpose of lanes x lanes elements: log2(lanes) rounds of a perfect shuffle.
template <typename A>
inline __attribute__((always_inline)) void transpose(Vec<A>* rows) {
  constexpr int kN = kLanes<A>;
  SNIPKERN_UNROLL for (int width = 1; width < kN; width *= 2) {
    Vec<A> next[kN];
    SNIPKERN_UNROLL for (int i = 0; i < kN / 2; ++i) {
      next[2 * i] = interleave<false, A>(rows[i], rows[i + kN / 2]);
      next[2 * i + 1] = interleave<true, A>(rows[i], rows[i + kN / 2]);
    }
    SNIPKERN_UNROLL for (int i = 0; i < kN; ++i) rows[i] = next[i];
  }
}

// Lane i of the result is the sum of the lanes of rows[i].
template <typename A>
inline __attribute__((always_inline)) Vec<A> sum_rows(Vec<A>* rows) {
  constexpr int kN = kLanes<A>;
  // Interleaving then adding halves the number of vectors; after log2(lanes) rounds one is left, in
  // order.
  SNIPKERN_UNROLL for (int count = kN; count > 1; count /= 2) {
    SNIPKERN_UNROLL for (int i = 0; i < count / 2; ++i) {
      rows[i] = interleave<false, A>(rows[i], rows[i + count / 2]) + interleave<true, A>(rows[i], rows[i + count / 2]);
    }
  }
  return rows[0];
}

}  // namespace
}  // namespace SNIPKERN_TIER
}  // namespace snipkern
