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
//
// Lanes behind the last sample read the first ones, whatever they sum, or, if `kGuarded`, zeros.
template <typename T, int kVectors, bool kGuarded>
struct FeatureMajor {
  using Element = T;
  using Sum = accumulator_t<T>;
  static constexpr int kWidth = kVector<T>;
  static constexpr int kLanes = kLineBytes / kVectorBytes;
  static constexpr int kPositions = kVectors * kWidth;  // of a lane
  static constexpr int kTile = kLanes * kPositions;
  static constexpr int kUnroll = sizeof(T) == 8 ? 2 : sizeof(T) == 4 ? 8 : 4;  // entries on their way at once
  static constexpr int kWarps = 16, kBlocks = 2;  // of a block, and of those on a multiprocessor at once
  static constexpr bool kSelects = false;

  struct Tap {
    int64_t offset;  // of the feature's row, in bytes
  };
  struct Lane {
    const char* samples;  // of the lane in the row of feature 0
    bool inside[kVectors];
  };

  const T* data;    // [features + 1][samples], the last row all zeros
  int64_t samples;  // padded, see linear_csr.h
  int64_t features;

  __host__ __device__ int64_t tiles() const { return (samples + kTile - 1) / kTile; }

  __device__ int64_t row_bytes() const { return samples * static_cast<int64_t>(sizeof(T)); }

  __device__ Lane lane(int64_t tile, int number) const {
    const int64_t first = tile * kTile + number * kWidth;
    Lane lane;
#pragma unroll
    for (int v = 0; v < kVectors; ++v) lane.inside[v] = first + v * (kLanes * kWidth) < samples;
    lane.samples = reinterpret_cast<const char*>(data + (lane.inside[0] ? first : 0));
    return lane;
  }

  // Place of a lane's position in the tile.
  __device__ static int place(int lane, int position) {
    return position / kWidth * (kLanes * kWidth) + lane * kWidth + position % kWidth;
  }

  __device__ bool decode(const CsrLists&, const Lane&, int64_t, int32_t, int32_t index, Tap& tap) const {
    tap.offset = index * row_bytes();
    return true;
  }

  // Stands where there is no entry.
  __device__ Tap nothing() const { return {features * row_bytes()}; }

  __device__ void load(const Lane& lane, const Tap& tap, Sum (&loaded)[kPositions]) const {
    const char* from = lane.samples + tap.offset;
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      Vector<T, kWidth> elements{};
      if (!kGuarded || lane.inside[v]) {
        elements = *reinterpret_cast<const Vector<T, kWidth>*>(from + v * kLineBytes);
      }
#pragma unroll
      for (int i = 0; i < kWidth; ++i) loaded[v * kWidth + i] = to_accumulator(elements.element[i]);
    }
  }
};

// With the rows that are multiplied with all of their entries.
template <typename T, int kVectors>
struct FeatureMajorPair : FeatureMajor<T, kVectors, true> {
  using Base = FeatureMajor<T, kVectors, true>;
  static constexpr int kGradientBlocks = kVectors == 2 ? 2 : 3;  // on a multiprocessor at once

  const T* rows;  // [rows][samples]

  __device__ void load_row(const typename Base::Lane& lane, int64_t row,
                           typename Base::Sum (&loaded)[Base::kPositions]) const {
    const int64_t apart = reinterpret_cast<const char*>(rows) - reinterpret_cast<const char*>(this->data);
    Base::load(lane, typename Base::Tap{apart + row * this->row_bytes()}, loaded);
  }
};

}  // namespace snipkern::cuda
