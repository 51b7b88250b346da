// What a sparse convolution reads, straight from images: a warp takes one kept weight at a time, its lanes are
// neighbouring output positions, of as many samples as it takes.
//
// Forward and input gradient are the same walk, "every position of an output sums its taps of a source":
//   forward         the output is y; position i of an axis reads x[i * stride - padding + tap * dilation]
//   input gradient  the output is dx, which splits into `stride` phases; position i of phase a is dx[i * stride + a],
//   and
//                   reads dy[i + (a + padding - tap * dilation) / stride] of those taps for which that divides evenly
// The weight gradient sums over the positions of the forward.
#pragma once

#include "cpu/conv_axis.h"
#include "cuda/csr_lists.cuh"
#include "cuda/csr_product.cuh"
#include "cuda/dtype.cuh"

namespace snipkern::cuda {

// Pairs are height, width.
struct ConvWalk {
  bool forward;
  int64_t batch;
  int source_channels, out_channels;
  int source_size[2], out_size[2];
  int phases[2];     // that have any output entry
  int out_step[2];   // output entries between two positions
  int positions[2];  // of phase 0, the longest
  int step[2];       // source entries between two positions
  int origin[2];     // source entry of position 0 for a tap at shift 0
  int kernel[2], stride[2], padding[2], dilation[2];

  ConvWalk(const Conv2dShape& shape, ConvDirection direction) {
    forward = direction == ConvDirection::kForward;
    batch = shape.batch;
    source_channels = static_cast<int>(forward ? shape.in_channels : shape.out_channels);
    out_channels = static_cast<int>(forward ? shape.out_channels : shape.in_channels);
    for (int i = 0; i < 2; ++i) {
      kernel[i] = static_cast<int>(shape.kernel[i]);
      stride[i] = static_cast<int>(shape.stride[i]);
      padding[i] = static_cast<int>(shape.padding[i]);
      dilation[i] = static_cast<int>(shape.dilation[i]);
      source_size[i] = static_cast<int>(forward ? shape.size[i] : shape.out_size[i]);
      out_size[i] = static_cast<int>(forward ? shape.out_size[i] : shape.size[i]);
      out_step[i] = forward ? 1 : stride[i];
      phases[i] = out_step[i] < out_size[i] ? out_step[i] : out_size[i];
      positions[i] = out_size[i] == 0 ? 0 : (out_size[i] - 1) / out_step[i] + 1;
      step[i] = forward ? stride[i] : 1;
      origin[i] = forward ? -padding[i] : 0;
    }
  }

  __host__ __device__ int taps() const { return kernel[0] * kernel[1]; }
  __host__ __device__ int64_t source_plane() const { return static_cast<int64_t>(source_size[0]) * source_size[1]; }
  __host__ __device__ int64_t out_plane() const { return static_cast<int64_t>(out_size[0]) * out_size[1]; }
  __host__ __device__ int64_t tiles_of_phase(int tile) const {
    return (batch * positions[0] * positions[1] + tile - 1) / tile;
  }
  __host__ __device__ int64_t tiles(int tile) const { return tiles_of_phase(tile) * phases[0] * phases[1]; }
};

// Where a tile begins.
struct ConvTileStart {
  int64_t sample;
  uint32_t position;  // of the sample
  int phase[2];

  __device__ ConvTileStart(const ConvWalk& walk, int64_t tile, int width) {
    const int64_t tiles = walk.tiles_of_phase(width);
    const int number = walk.forward ? 0 : static_cast<int>(tile / tiles);
    phase[0] = number / walk.phases[1];
    phase[1] = number % walk.phases[1];
    const int64_t first = (tile - tiles * number) * width,
                  plane = static_cast<int64_t>(walk.positions[0]) * walk.positions[1];
    sample = first / plane;
    position = static_cast<uint32_t>(first - sample * plane);
  }
};

// A position of a tile, `number` from its first.
struct ConvPlace {
  bool inside;     // there is an output entry
  int64_t sample;  // of the batch
  int at[2];       // in its phase
  int out[2];      // in the output

  __device__ ConvPlace(const ConvWalk& walk, const ConvTileStart& start, int number) {
    const uint32_t plane = static_cast<uint32_t>(walk.positions[0]) * walk.positions[1];
    const uint32_t position = start.position + number;
    sample = start.sample + position / plane;
    at[0] = static_cast<int>(position % plane / walk.positions[1]);
    at[1] = static_cast<int>(position % plane % walk.positions[1]);
    for (int i = 0; i < 2; ++i) out[i] = at[i] * walk.out_step[i] + start.phase[i];
    inside = sample < walk.batch && out[0] < walk.out_size[0] && out[1] < walk.out_size[1];
  }

  __device__ int64_t out_offset(const ConvWalk& walk) const {
    return sample * walk.out_channels * walk.out_plane() + static_cast<int64_t>(out[0]) * walk.out_size[1] + out[1];
  }
};

template <typename T, bool kForward>
struct ConvWindow {
  using Element = T;
  using Sum = accumulator_t<T>;
  static constexpr int kLanes = kWarpLanes;
  static constexpr int kPositions = sizeof(T) == 8 ? 2 : 4;  // of a lane: every 32nd one of the tile
  static constexpr int kTile = kLanes * kPositions;
  static constexpr int kUnroll = 2;              // entries on their way at once
  static constexpr int kWarps = 8, kBlocks = 3;  // of a block, and of those on a multiprocessor at once
  static constexpr bool kSelects = !kForward;

  struct Tap {
    int64_t shift;  // in bytes, from a position in channel 0
    int y, x;       // the same in rows and columns, to tell whether it leads out of the image
  };
  struct Lane {
    const char* from[kPositions];  // the position in the source, channel 0; perhaps outside of the image
    int y[kPositions], x[kPositions];
    int phase[2];
  };

  const T* data;  // [batch, source channels, height, width]
  ConvWalk walk;

  __host__ __device__ int64_t tiles() const { return walk.tiles(kTile); }

  __device__ static int place(int lane, int position) { return position * kLanes + lane; }

  __device__ Lane lane(int64_t tile, int number) const {
    const ConvTileStart start(walk, tile, kTile);
    Lane lane;
    lane.phase[0] = start.phase[0];
    lane.phase[1] = start.phase[1];
#pragma unroll
    for (int p = 0; p < kPositions; ++p) place_at(lane, p, ConvPlace(walk, start, number + p * kLanes));
    return lane;
  }

  __device__ void place_at(Lane& lane, int p, const ConvPlace& place) const {
    // Where no shift leads into the image, there is nothing to read.
    lane.y[p] = place.inside ? place.at[0] * walk.step[0] + walk.origin[0] : INT32_MIN / 2;
    lane.x[p] = place.at[1] * walk.step[1] + walk.origin[1];
    const int64_t offset = place.sample * walk.source_channels * walk.source_plane() +
                           static_cast<int64_t>(lane.y[p]) * walk.source_size[1] + lane.x[p];
    lane.from[p] = reinterpret_cast<const char*>(data) + offset * static_cast<int64_t>(sizeof(T));
  }

  // Whether the entry, `index` in its list, has a tap that positions of this phase have.
  __device__ bool decode(const CsrLists& lists, const Lane& lane, int64_t row, int32_t entry, int32_t index,
                         Tap& tap) const {
    if (kForward) {
      const int taps = walk.taps(), number = index % taps;
      tap =
          tap_at(index / taps, number / walk.kernel[1] * walk.dilation[0], number % walk.kernel[1] * walk.dilation[1]);
      return true;
    }
    const int number = lists.list_of(row, entry);
    const int y = lane.phase[0] + walk.padding[0] - number / walk.kernel[1] * walk.dilation[0];
    const int x = lane.phase[1] + walk.padding[1] - number % walk.kernel[1] * walk.dilation[1];
    tap = tap_at(index, y / walk.stride[0], x / walk.stride[1]);
    return y % walk.stride[0] == 0 && x % walk.stride[1] == 0;
  }

  __device__ Tap tap_at(int channel, int y, int x) const {
    const int64_t shift = channel * walk.source_plane() + static_cast<int64_t>(y) * walk.source_size[1] + x;
    return {shift * static_cast<int64_t>(sizeof(T)), y, x};
  }

  // Stands where there is no entry: it reaches no image from anywhere.
  __device__ Tap nothing() const { return {0, INT32_MIN / 2, 0}; }

  __device__ void load(const Lane& lane, const Tap& tap, Sum (&loaded)[kPositions]) const {
#pragma unroll
    for (int p = 0; p < kPositions; ++p) {
      const bool inside = static_cast<unsigned>(lane.y[p] + tap.y) < static_cast<unsigned>(walk.source_size[0]) &&
                          static_cast<unsigned>(lane.x[p] + tap.x) < static_cast<unsigned>(walk.source_size[1]);
      loaded[p] = inside ? to_accumulator(*reinterpret_cast<const T*>(lane.from[p] + tap.shift)) : Sum(0);
    }
  }
};

// Images and the gradient of the output, at the same positions.
template <typename T>
struct ConvGradientWindow : ConvWindow<T, true> {
  using Base = ConvWindow<T, true>;
  using typename Base::Sum;
  static constexpr int kGradientBlocks = 2;  // on a multiprocessor at once

  struct Lane : Base::Lane {
    int64_t grad_offset[Base::kPositions];  // in channel 0; negative where there is no position
  };

  const T* grad;  // [batch, out channels, out height, out width]

  __device__ Lane lane(int64_t tile, int number) const {
    const ConvTileStart start(this->walk, tile, Base::kTile);
    Lane lane;
#pragma unroll
    for (int p = 0; p < Base::kPositions; ++p) {
      const ConvPlace place(this->walk, start, number + p * Base::kLanes);
      this->place_at(lane, p, place);
      lane.grad_offset[p] = place.inside ? place.out_offset(this->walk) : int64_t{-1};
    }
    return lane;
  }

  __device__ void load_row(const Lane& lane, int64_t row, Sum (&loaded)[Base::kPositions]) const {
#pragma unroll
    for (int p = 0; p < Base::kPositions; ++p) {
      const int64_t offset = lane.grad_offset[p];
      loaded[p] = offset < 0 ? Sum(0) : to_accumulator(grad[offset + row * this->walk.out_plane()]);
    }
  }
};

// [batch, out channels, out height, out width]: neighbouring threads store neighbouring positions of a channel.
template <typename T>
struct ConvOutput {
  T* y;
  const T* bias;  // [out channels] or null
  ConvWalk walk;

  template <int kTile, int kThreads>
  __device__ void store(const accumulator_t<T>* tile, int pitch, int64_t tile_number, int64_t first_row,
                        int64_t rows) const {
    static_assert(kThreads % kTile == 0, "a thread keeps its position");
    const int p = threadIdx.x % kTile;
    const ConvPlace place(walk, ConvTileStart(walk, tile_number, kTile), p);
    if (!place.inside) return;
    T* target = y + place.out_offset(walk);
    for (int r = threadIdx.x / kTile; r < kProductRows && first_row + r < rows; r += kThreads / kTile) {
      const int64_t row = first_row + r;
      const accumulator_t<T> offset = bias == nullptr ? 0 : to_accumulator(bias[row]);
      target[row * walk.out_plane()] = round_to<T>(tile[r * pitch + p] + offset);
    }
  }
};

}  // namespace snipkern::cuda
