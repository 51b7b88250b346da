// See zero_pruned.h. Memory is what it waits for: in place, the mask alone decides of 16 bytes that are kept whole, the
// others are read once, and written only where something pruned is not +0; a copy is read and written once.
//
// A thread moves 16 bytes at a time, kTogether times, so that 16 KiB of a block are on their way at once. The accesses
// are aligned in `to`; what comes before the first such place, and after the last, is moved element by element.

#include "cuda/zero_pruned.h"

#include <algorithm>

#include "cuda/dtype.cuh"

namespace snipkern::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kTogether = 4;
constexpr int kMaskBits = 64;

// 16 bytes of elements, whatever these are.
using Bytes16 = Vector<uint32_t, 4>;

// The bits of `count` elements from `first` on, in the lowest places.
__device__ __forceinline__ unsigned kept_bits(const uint64_t* words, int64_t first, int count) {
  const int64_t word = first / kMaskBits;
  const int shift = static_cast<int>(first % kMaskBits);
  uint64_t bits = words[word] >> shift;
  if (shift + count > kMaskBits) bits |= words[word + 1] << (kMaskBits - shift);
  return static_cast<unsigned>(bits) & ((1u << count) - 1);
}

// All ones in what is kept of the `index`-th four bytes.
template <typename E>
__device__ __forceinline__ uint32_t kept_mask(unsigned kept, int index) {
  if constexpr (sizeof(E) == 2) {
    return ((kept >> (2 * index) & 1) * 0xFFFFu) | ((kept >> (2 * index + 1) & 1) * 0xFFFF0000u);
  } else {
    return 0u - (kept >> (sizeof(E) == 4 ? index : index / 2) & 1);
  }
}

// How `from` can be read where `to` can be written 16 bytes at a time.
enum class Access { kInPlace, kVectors, kElements };

template <typename E, Access kAccess>
__device__ __forceinline__ Bytes16 load(const E* from) {
  Bytes16 loaded;
  if constexpr (kAccess != Access::kElements) {
    loaded = *reinterpret_cast<const Bytes16*>(from);
    return loaded;
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if constexpr (sizeof(E) == 2) {
        loaded.element[i] = from[2 * i] | static_cast<uint32_t>(from[2 * i + 1]) << 16;
      } else if constexpr (sizeof(E) == 4) {
        loaded.element[i] = from[i];
      } else {
        loaded.element[i] = static_cast<uint32_t>(from[i / 2] >> (i % 2 * 32));
      }
    }
    return loaded;
  }
}

// Grid: one block for each kThreads * kTogether vectors, at least one. `head` elements come before the vectors.
template <typename E, Access kAccess>
__global__ void __launch_bounds__(kThreads)
    zero_pruned_kernel(const E* from, const uint64_t* words, int64_t numel, int64_t head, E* to) {
  constexpr int kElements = kVector<E>;
  constexpr unsigned kAll = (1u << kElements) - 1;
  const int64_t vectors = (numel - head) / kElements;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * (kThreads * kTogether) + threadIdx.x;
  unsigned kept[kTogether];
  Bytes16 loaded[kTogether];
#pragma unroll
  for (int i = 0; i < kTogether; ++i) {
    const int64_t vector = first + i * kThreads;
    // What lies past the end counts as kept: in place, nothing is done about it.
    kept[i] = vector < vectors ? kept_bits(words, head + vector * kElements, kElements) : kAll;
  }
#pragma unroll
  for (int i = 0; i < kTogether; ++i) {
    const int64_t vector = first + i * kThreads;
    const bool needed = kAccess == Access::kInPlace ? kept[i] != kAll : vector < vectors;
    if (needed) loaded[i] = load<E, kAccess>(from + head + vector * kElements);
  }
#pragma unroll
  for (int i = 0; i < kTogether; ++i) {
    const int64_t vector = first + i * kThreads;
    if (kAccess == Access::kInPlace ? kept[i] == kAll : vector >= vectors) continue;
    uint32_t dirty = 0;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const uint32_t mask = kept_mask<E>(kept[i], j);
      dirty |= loaded[i].element[j] & ~mask;
      loaded[i].element[j] &= mask;
    }
    if (kAccess == Access::kInPlace && dirty == 0) continue;
    reinterpret_cast<Bytes16*>(to + head)[vector] = loaded[i];
  }
  // Fewer than a vector's elements before the vectors, and fewer than that behind them.
  if (blockIdx.x != 0 || threadIdx.x >= 2 * kElements) return;
  const int64_t behind = head + vectors * kElements + (static_cast<int>(threadIdx.x) - kElements);
  const int64_t at = threadIdx.x < kElements ? static_cast<int64_t>(threadIdx.x) : behind;
  if (at >= (threadIdx.x < kElements ? head : numel)) return;
  const E value = (words[at / kMaskBits] >> (at % kMaskBits) & 1) != 0 ? from[at] : E{0};
  if (kAccess != Access::kInPlace || value != from[at]) to[at] = value;
}

template <typename E>
cudaError_t launch(const ZeroPruned& call, cudaStream_t stream) {
  constexpr int64_t kBlock = int64_t{kThreads} * kTogether * kVector<E>;
  const E* from = static_cast<const E*>(call.from);
  const uint64_t* words = reinterpret_cast<const uint64_t*>(call.words);
  E* to = static_cast<E*>(call.to);
  const auto elements_past_16_bytes = [](const void* at) {
    return static_cast<int64_t>(reinterpret_cast<uintptr_t>(at) % 16 / sizeof(E));
  };
  const int64_t past = elements_past_16_bytes(to);
  const int64_t head = std::min<int64_t>(past == 0 ? 0 : kVector<E> - past, call.numel);
  const unsigned grid = static_cast<unsigned>(std::max<int64_t>(1, (call.numel - head + kBlock - 1) / kBlock));
  if (from == to) {
    SNIPKERN_LAUNCH((zero_pruned_kernel<E, Access::kInPlace>), grid, kThreads, 0, stream, from, words, call.numel, head,
                    to);
  } else if (elements_past_16_bytes(from) == past) {
    SNIPKERN_LAUNCH((zero_pruned_kernel<E, Access::kVectors>), grid, kThreads, 0, stream, from, words, call.numel, head,
                    to);
  } else {
    SNIPKERN_LAUNCH((zero_pruned_kernel<E, Access::kElements>), grid, kThreads, 0, stream, from, words, call.numel,
                    head, to);
  }
  return cudaGetLastError();
}

}  // namespace

cudaError_t zero_pruned(const ZeroPruned& call, cudaStream_t stream) {
  if (call.numel == 0) return cudaSuccess;
  switch (call.element_bytes) {
    case 2:
      return launch<uint16_t>(call, stream);
    case 4:
      return launch<uint32_t>(call, stream);
    default:
      return launch<uint64_t>(call, stream);
  }
}

}  // namespace snipkern::cuda
