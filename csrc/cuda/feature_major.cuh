// Activations as [feature][samples], so that the samples of a feature are neighbours: one 16-byte load serves several.
// The scratch copy that linear layers read; convolutions need none, see conv_window.cuh.
#pragma once

#include <cstdint>

#include "cuda/csr_lists.cuh"
#include "cuda/dtype.cuh"

namespace snipkern::cuda {

constexpr int kLineBytes = 128;
constexpr int kVectorBytes = 16;

// Eight lanes take one entry, as one cache line for each of their `kVectors` loads; so a warp has four entries in hand,
// and a tile is narrow enough for the rows that warps read at about the same time to stay in L1.
template <typename T, int kVectors>
struct FeatureMajor {
  using Element = T;
  using Sum = accumulator_t<T>;
  static constexpr int kWidth = kVector<T>;
  static constexpr int kLanes = kLineBytes / kVectorBytes;
  static constexpr int kPositions = kVectors * kWidth;  // of a lane
  static constexpr int kTile = kLanes * kPositions;
  static constexpr int kUnroll = 4 / kVectors;
  static constexpr int kWarps = 16, kBlocks = 2;  // of a block, and of those on a multiprocessor at once
  static constexpr bool kSelects = false;

  struct Tap {
    int32_t feature;
  };
  struct Lane {
    int64_t first;  // sample of its first vector
  };

  const T* data;    // [features][samples]
  int64_t samples;  // padded, see linear_csr.h

  __host__ __device__ int64_t tiles() const { return (samples + kTile - 1) / kTile; }

  __device__ Lane lane(int64_t tile, int number) const { return {tile * kTile + number * kWidth}; }

  // Place of a lane's position in the tile.
  __device__ static int place(int lane, int position) {
    return position / kWidth * (kLanes * kWidth) + lane * kWidth + position % kWidth;
  }

  __device__ bool decode(const CsrLists&, const Lane&, int64_t, int32_t, int32_t index, Tap& tap) const {
    tap.feature = index;
    return true;
  }

  __device__ void load(const Lane& lane, const Tap& tap, bool wanted, Sum (&loaded)[kPositions]) const {
    const T* row = data + tap.feature * samples;
#pragma unroll
    for (int vector = 0; vector < kVectors; ++vector) {
      const int64_t sample = lane.first + vector * (kLanes * kWidth);
      Vector<T, kWidth> elements{};
      if (wanted && sample < samples) elements = *reinterpret_cast<const Vector<T, kWidth>*>(row + sample);
#pragma unroll
      for (int i = 0; i < kWidth; ++i) loaded[vector * kWidth + i] = to_accumulator(elements.element[i]);
    }
  }
};

// With the rows that are multiplied with all of their entries.
template <typename T, int kVectors>
struct FeatureMajorPair : FeatureMajor<T, kVectors> {
  using Base = FeatureMajor<T, kVectors>;
  static constexpr int kGradientBlocks = 3;  // on a multiprocessor at once

  const T* rows;  // [rows][samples]

  __device__ void load_row(const typename Base::Lane& lane, int64_t row,
                           typename Base::Sum (&loaded)[Base::kPositions]) const {
    const Base source{rows, this->samples};
    source.load(lane, typename Base::Tap{static_cast<int32_t>(row)}, true, loaded);
  }
};

}  // namespace snipkern::cuda
