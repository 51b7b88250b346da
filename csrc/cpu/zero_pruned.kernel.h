// See zero_pruned.h. Compiled once per ISA tier.

#include "cpu/simd.kernel.h"

namespace snipkern {
namespace SNIPKERN_TIER {
namespace {

constexpr int kMaskBits = 64;
// Looked at together before anything of them is written: 4 KiB of float.
constexpr int kBlockWords = 16;

// Bits are spread over the lanes of Wide, as many of which hold elements E.
template <typename E>
struct Lanes {
  using Wide = std::conditional_t<sizeof(E) == 8, int64_t, int32_t>;
  static constexpr int kCount = kLanes<Wide>;
  typedef E vector __attribute__((vector_size(kCount * sizeof(E))));
};
template <typename E>
using Elements = typename Lanes<E>::vector;

// All ones where bit `lane` of bits is set.
template <typename E, int... kLane>
inline __attribute__((always_inline)) Elements<E> keep(uint64_t bits, std::integer_sequence<int, kLane...>) {
  using Wide = typename Lanes<E>::Wide;
  const Vec<Wide> own = {(Wide{1} << kLane)...};
  const Vec<Wide> kept = (broadcast<Vec<Wide>>(static_cast<Wide>(bits)) & own) == own;
  if constexpr (sizeof(Wide) == sizeof(E)) {
    return kept;
  } else {
    return __builtin_convertvector(kept, Elements<E>);
  }
}

// Calls f(offset, kept lanes) for each vector of the 64 elements of a word.
template <typename E, typename F>
inline __attribute__((always_inline)) void for_vectors(uint64_t word, const F& f) {
  constexpr int kCount = Lanes<E>::kCount;
  SNIPKERN_UNROLL for (int lane = 0; lane < kMaskBits; lane += kCount) {
    f(lane, keep<E>(word >> lane, std::make_integer_sequence<int, kCount>{}));
  }
}

template <typename E>
inline __attribute__((always_inline)) Elements<E> load_elements(const E* from) {
  Elements<E> value;
  std::memcpy(&value, from, sizeof(value));
  return value;
}

template <typename E>
inline __attribute__((always_inline)) void store_elements(E* to, Elements<E> value) {
  std::memcpy(to, &value, sizeof(value));
}

template <typename E>
void copy_kept(const E* from, const int64_t* words, int64_t count, E* to) {
  for (int64_t w = 0; w < count; ++w) {
    for_vectors<E>(static_cast<uint64_t>(words[w]), [&](int lane, Elements<E> kept) {
      const int64_t at = w * kMaskBits + lane;
      store_elements(to + at, load_elements(from + at) & kept);
    });
  }
}

// Whether anything pruned is not +0.
template <typename E>
bool is_dirty(const E* from, const int64_t* words, int64_t count) {
  Elements<E> any = {};
  for (int64_t w = 0; w < count; ++w) {
    for_vectors<E>(static_cast<uint64_t>(words[w]),
                   [&](int lane, Elements<E> kept) { any |= load_elements(from + w * kMaskBits + lane) & ~kept; });
  }
  E all = 0;
  for (int lane = 0; lane < Lanes<E>::kCount; ++lane) all |= any[lane];
  return all != 0;
}

template <typename E>
void zero_pruned(const ZeroPruned& call, const TaskRunner& run) {
  const E* from = static_cast<const E*>(call.from);
  E* to = static_cast<E*>(call.to);
  const int64_t whole = call.numel / kMaskBits;
  const int64_t blocks = (whole + kBlockWords - 1) / kBlockWords;
  // An element takes about as long as five multiply-adds: memory is what this waits for.
  const double work = 5.0 * call.numel;
  const int64_t parts = std::min(std::max<int64_t>(blocks, 1), task_count(work, 64));
  run_if_worth(run, work, parts, [&](int64_t part) {
    for (int64_t block = part_begin(blocks, parts, part); block < part_begin(blocks, parts, part + 1); ++block) {
      const int64_t first = block * kBlockWords, count = std::min<int64_t>(kBlockWords, whole - first);
      const int64_t* words = call.words + first;
      const int64_t at = first * kMaskBits;
      if (from != to || is_dirty(from + at, words, count)) copy_kept(from + at, words, count, to + at);
    }
  });
  for (int64_t i = whole * kMaskBits; i < call.numel; ++i) {
    to[i] = call.words[whole] >> (i % kMaskBits) & 1 ? from[i] : E{0};
  }
}

}  // namespace
}  // namespace SNIPKERN_TIER
}  // namespace snipkern
