// Images as matrices [pixels of the output, elements of a patch], for bsr_product.cuh: loaders that gather patches
// while they fill a tile, and the output's planes. The pixels of all images count through, in the order of the output.
#pragma once

#include "cpu/conv_axis.h"
#include "cuda/bsr_lists.cuh"
#include "cuda/bsr_product.cuh"

namespace snipkern::cuda {

// Pairs are height, width.
struct PatchGeometry {
  int32_t channels, size[2], taps, kernel_width, out_size[2], stride[2], padding[2], dilation[2];
  bool vectors;  // pixel p of a plane is its entry p, and 16-byte pieces never cross planes

  __device__ int32_t plane() const { return out_size[0] * out_size[1]; }
};

// What an image is gathered from: x, whose patches are the taps of the convolution.
template <typename T>
PatchGeometry patches_of_input(const Conv2dShape& shape, const void* x) {
  PatchGeometry geometry{};
  geometry.channels = static_cast<int32_t>(shape.in_channels);
  geometry.taps = static_cast<int32_t>(shape.kernel[0] * shape.kernel[1]);
  geometry.kernel_width = static_cast<int32_t>(shape.kernel[1]);
  bool plain = geometry.taps == 1;
  for (int i = 0; i < 2; ++i) {
    geometry.size[i] = static_cast<int32_t>(shape.size[i]);
    geometry.out_size[i] = static_cast<int32_t>(shape.out_size[i]);
    geometry.stride[i] = static_cast<int32_t>(shape.stride[i]);
    geometry.padding[i] = static_cast<int32_t>(shape.padding[i]);
    geometry.dilation[i] = static_cast<int32_t>(shape.dilation[i]);
    plain = plain && shape.stride[i] == 1 && shape.padding[i] == 0;
  }
  geometry.vectors =
      plain && shape.out_size[0] * shape.out_size[1] % kVector<T> == 0 && reinterpret_cast<uintptr_t>(x) % 16 == 0;
  return geometry;
}

// The output's gradient: a patch is the pixel itself, of all output channels.
template <typename T>
PatchGeometry pixels_of_output(const Conv2dShape& shape, const void* grad) {
  Conv2dShape plain = shape;
  plain.in_channels = shape.out_channels;
  for (int i = 0; i < 2; ++i) {
    plain.size[i] = shape.out_size[i];
    plain.kernel[i] = plain.stride[i] = plain.dilation[i] = 1;
    plain.padding[i] = 0;
  }
  return patches_of_input<T>(plain, grad);
}

struct Pixel {
  int64_t image;
  int32_t row, col;

  Pixel() = default;
  __device__ Pixel(const PatchGeometry& geometry, int64_t number) {
    image = number / geometry.plane();
    const auto place = static_cast<int32_t>(number - image * geometry.plane());
    row = place / geometry.out_size[1];
    col = place - row * geometry.out_size[1];
  }

  __device__ void next(const PatchGeometry& geometry) {
    if (++col < geometry.out_size[1]) return;
    col = 0;
    if (++row < geometry.out_size[0]) return;
    row = 0;
    ++image;
  }
};

// One element of a patch: a channel, and how far from stride times the pixel.
struct Tap {
  int32_t channel, down, right;

  Tap() = default;
  __device__ Tap(const PatchGeometry& geometry, int32_t element) {
    channel = element / geometry.taps;
    const int32_t tap = element - channel * geometry.taps, row = tap / geometry.kernel_width;
    down = row * geometry.dilation[0] - geometry.padding[0];
    right = (tap - row * geometry.kernel_width) * geometry.dilation[1] - geometry.padding[1];
  }
};

// A tap of up to kVector<T> pixels that follow one another, zeros in the padding and beyond `count`: to shared memory.
template <typename T>
__device__ void gather_pixels(T* to, const T* x, const PatchGeometry& geometry, Pixel pixel, const Tap& tap,
                              int64_t count) {
  if (geometry.vectors) {
    const int64_t plane = pixel.image * geometry.channels + tap.channel;
    const int64_t place = plane * geometry.plane() + pixel.row * geometry.out_size[1] + pixel.col;
    copy_async_16(to, count > 0 ? x + place : x, count > 0 ? 16 : 0);
    return;
  }
  Vector<T, kVector<T>> piece;
#pragma unroll
  for (int i = 0; i < kVector<T>; ++i) {
    const int32_t row = pixel.row * geometry.stride[0] + tap.down, col = pixel.col * geometry.stride[1] + tap.right;
    const bool inside = i < count && static_cast<uint32_t>(row) < static_cast<uint32_t>(geometry.size[0]) &&
                        static_cast<uint32_t>(col) < static_cast<uint32_t>(geometry.size[1]);
    const int64_t line = (pixel.image * geometry.channels + tap.channel) * geometry.size[0] + row;
    piece.element[i] = inside ? x[line * geometry.size[1] + col] : round_to<T>(0);
    pixel.next(geometry);
  }
  *reinterpret_cast<Vector<T, kVector<T>>*>(to) = piece;
}

// Places are pixels [first, last); the depth is a list of patch elements.
template <typename TileOf>
struct PixelPlaces {
  using Tile = TileOf;
  using T = typename Tile::Element;
  using Fill = Filling<Tile>;
  static_assert(!Tile::kDepthInner);

  const T* x;
  PatchGeometry geometry;
  KeptList list;
  Walk walk;
  int64_t count;  // pixels from this thread's first to the last
  Pixel pixel;

  __device__ PixelPlaces(const T* x, const PatchGeometry& geometry, int64_t first, int64_t last, const KeptList& list,
                         Walk walk)
      : x(x), geometry(geometry), list(list), walk(walk) {
    count = last - first - Fill::inner();
    pixel = Pixel(geometry, min(first + Fill::inner(), last - 1));
  }

  __device__ void load(T* tile, int32_t step) {
#pragma unroll 2
    for (int pass = 0; pass < Fill::kPasses; ++pass) {
      if (!Fill::has(pass)) continue;
      const int32_t k = walk.begin + step * kDepth<T> + Fill::line(pass);
      const bool real = k < walk.end;
      const Tap tap(geometry, real ? list[k] : 0);
      gather_pixels(tile + Tile::at(Fill::inner(), Fill::line(pass)), x, geometry, pixel, tap, real ? count : 0);
    }
  }
};

// Places are patch elements from `begin` on in a list; the depth is pixels [first, last).
template <typename TileOf>
struct PixelDepth {
  using Tile = TileOf;
  using T = typename Tile::Element;
  using Fill = Filling<Tile>;
  static_assert(Tile::kDepthInner);

  const T* x;
  PatchGeometry geometry;
  int64_t first, last;
  Tap taps[Fill::kPasses];
  bool listed[Fill::kPasses];

  template <typename List>
  __device__ PixelDepth(const T* x, const PatchGeometry& geometry, int64_t first, int64_t last, const List& list,
                        int32_t begin)
      : x(x), geometry(geometry), first(first), last(last) {
#pragma unroll
    for (int pass = 0; pass < Fill::kPasses; ++pass) {
      const int32_t place = begin + Fill::line(pass);
      listed[pass] = place < list.length;
      taps[pass] = Tap(geometry, listed[pass] ? list[place] : 0);
    }
  }

  __device__ void load(T* tile, int32_t step) {
    const int64_t number = first + static_cast<int64_t>(step) * kDepth<T> + Fill::inner();
    const Pixel pixel(geometry, min(number, last - 1));
#pragma unroll
    for (int pass = 0; pass < Fill::kPasses; ++pass) {
      if (!Fill::has(pass)) continue;
      gather_pixels(tile + Tile::at(Fill::line(pass), Fill::inner()), x, geometry, pixel, taps[pass],
                    listed[pass] ? last - number : 0);
    }
  }
};

// y [images, outputs, plane] as a target of LineOut: rows are pixels of all images, places are channels.
template <typename T>
struct ImagePlanes {
  using Sum = accumulator_t<T>;
  static constexpr bool kRowsInner = true;

  T* y;
  const T* bias;
  int64_t rows;
  int32_t outputs, plane;

  template <int N>
  __device__ void store(int64_t row, int32_t channel, Sum (&piece)[N], int64_t count) const {
    const Sum offset = bias == nullptr ? 0 : to_accumulator(bias[channel]);
#pragma unroll
    for (int i = 0; i < N; ++i) piece[i] += offset;
    int64_t image = row / plane;
    auto place = static_cast<int32_t>(row - image * plane);
    T* to = y + (image * outputs + channel) * plane;
    if (place + min(count, static_cast<int64_t>(N)) <= plane) {
      store_piece<T>(to + place, piece, count);
      return;
    }
    for (int i = 0; i < N && i < count; ++i) {
      to[place] = round_to<T>(piece[i]);
      if (++place < plane) continue;
      place = 0;
      to += static_cast<int64_t>(outputs) * plane;
    }
  }
};

}  // namespace snipkern::cuda
