// The product of a wide and a narrow operand, which all block-sparse kernels are: loads in flight while earlier steps
// are multiplied, then sums that leave through shared memory in 16-byte pieces.
#pragma once

#include "cuda/async_copy.cuh"
#include "cuda/bsr_math.cuh"

namespace snipkern::cuda {

constexpr int kStages = 3;

// Sums on their way out, with what the output has contiguous inside; padded against bank conflicts as far as the
// threads' layout of sums allows.
template <typename Math, bool kWideInner>
struct Staging {
  using Sum = accumulator_t<typename Math::Element>;
  static constexpr int kLine = kWideInner ? Math::kWidth : Math::kHeight;
  static constexpr int kLines = kWideInner ? Math::kHeight : Math::kWidth;
  static constexpr int kStride = kLine + (kWideInner ? 4 : 8);
  static constexpr int kBytes = kLines * kStride * static_cast<int>(sizeof(Sum));

  __device__ static int at(int wide, int narrow) {
    return kWideInner ? narrow * kStride + wide : wide * kStride + narrow;
  }
};

template <typename Math, typename Wide, typename Narrow, typename Out>
constexpr int shared_bytes() {
  constexpr int kOperands =
      kStages * (Wide::Tile::kElements + Narrow::Tile::kElements) * static_cast<int>(sizeof(typename Math::Element));
  constexpr int kSums = Staging<Math, Out::kWideInner>::kBytes;
  static_assert(kOperands <= 48 << 10 && kSums <= 48 << 10, "more needs leave from the driver");
  return kOperands > kSums ? kOperands : kSums;
}

// Writes the first `count` of some sums to neighbouring elements.
template <typename T, int N>
__device__ void store_piece(T* to, const accumulator_t<T> (&sums)[N], int64_t count) {
  constexpr int kAtOnce = N < kVector<T> ? N : kVector<T>;
#pragma unroll
  for (int i = 0; i < N; i += kAtOnce) {
    accumulator_t<T> piece[kAtOnce];
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) piece[j] = sums[i + j];
    if (count >= i + kAtOnce && reinterpret_cast<uintptr_t>(to + i) % (kAtOnce * sizeof(T)) == 0) {
      store_vector<kAtOnce>(to + i, piece);
    } else {
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) {
        if (i + j < count) to[i + j] = round_to<T>(piece[j]);
      }
    }
  }
}

// Loaders bring the tiles of steps 0, 1, 2, ... in this order, zeros where there is nothing: `load(tile, step)`. `out`
// takes pieces of kVector<T> sums, neighbours in the wide operand where Out::kWideInner, else in the narrow one, and
// leaves away what is beyond its bounds: `write(wide, narrow, sums)`. Every thread of the block must call it.
template <typename Math, typename Wide, typename Narrow, typename Out>
__device__ void multiply(Wide& wide, Narrow& narrow, int32_t steps, const Out& out) {
  using T = typename Math::Element;
  using Sum = accumulator_t<T>;
  using Layout = Staging<Math, Out::kWideInner>;
  constexpr int kStage = Wide::Tile::kElements + Narrow::Tile::kElements;
  SNIPKERN_DYNAMIC_SHARED(unsigned char, shared);
  T* const stages = reinterpret_cast<T*>(shared);
  const auto bring = [&](int32_t step) {
    if (step < steps) {
      T* const stage = stages + step % kStages * kStage;
      wide.load(stage, step);
      narrow.load(stage + Wide::Tile::kElements, step);
    }
    copy_async_commit();
  };
  Math math;
  // The first loads are rounds of the same loop, so that loaders, which are long, stand in the code once.
#pragma unroll 1
  for (int32_t step = 1 - kStages; step < steps; ++step) {
    copy_async_wait<kStages - 2>();
    __syncthreads();
    // Into the stage that all threads have multiplied before this barrier.
    bring(step + kStages - 1);
    if (step < 0) continue;
    const T* const stage = stages + step % kStages * kStage;
    math.template step<typename Wide::Tile, typename Narrow::Tile>(stage, stage + Wide::Tile::kElements);
  }
  copy_async_wait<0>();
  __syncthreads();
  Sum* const sums = reinterpret_cast<Sum*>(shared);
  math.template each<typename Wide::Tile, typename Narrow::Tile>(
      [&](int place, int other, Sum sum) { sums[Layout::at(place, other)] = sum; });
  __syncthreads();
  constexpr int kPieces = Layout::kLine / kVector<T>;
  for (int e = static_cast<int>(threadIdx.x); e < kPieces * Layout::kLines; e += kThreads) {
    const int inner = e % kPieces * kVector<T>, line = e / kPieces;
    Sum piece[kVector<T>];
#pragma unroll
    for (int i = 0; i < kVector<T>; i += kVector<Sum>) {
      Sum part[kVector<Sum>];
      load_vector<kVector<Sum>>(part, sums + line * Layout::kStride + inner + i);
#pragma unroll
      for (int j = 0; j < kVector<Sum>; ++j) piece[i + j] = part[j];
    }
    if constexpr (Out::kWideInner) {
      out.write(inner, line, piece);
    } else {
      out.write(line, inner, piece);
    }
  }
}

}  // namespace snipkern::cuda
