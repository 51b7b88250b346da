#include "cuda/conv2d_bsr.h"

#include "cuda/bsr_lines.cuh"
#include "cuda/bsr_loaders.cuh"
#include "cuda/bsr_patches.cuh"

namespace snipkern::cuda {
namespace {

constexpr int kPixels = 128;  // of a thread block

template <typename T>
struct Arguments {
  BlockIndex index;
  Segments segments;
  PatchGeometry patches;
  const T *x, *values;
  ImagePlanes<T> y;
  SegmentSums<accumulator_t<T>, true> sums;
  int64_t first;  // pixel
  int32_t tiles;  // narrow tiles of a block row
  bool vector_values;
};

template <typename Math>
struct Operands {
  using T = typename Math::Element;
  using Wide = PixelPlaces<Tile<T, Math::kWidth, Inner::kExtent>>;
  using Narrow = RunValues<Tile<T, Math::kHeight, Inner::kDepth>>;
  using Out = LineOut<ImagePlanes<T>>;
  static constexpr int kShared = shared_bytes<Math, Wide, Narrow, Out>();
};

// A thread block: some pixels, and the channels of one narrow tile of a block row.
template <typename Math>
__global__ void __launch_bounds__(kThreads, kResident) conv2d_bsr_kernel(const Arguments<typename Math::Element> call) {
  using Parts = Operands<Math>;
  const LineItem item(call.segments, call.tiles, Math::kHeight);
  const BlockRow row(call.index, item.number);
  const Walk walk = call.segments.walk(item.segment, row.run);
  if (item.begin >= row.extent || (item.segment > 0 && walk.begin == walk.end)) return;
  const int64_t first = call.first + static_cast<int64_t>(blockIdx.y) * Math::kWidth;
  typename Parts::Wide wide(call.x, call.patches, first, call.y.rows, row.list, walk);
  typename Parts::Narrow narrow(call.values, call.index, row, item.begin, walk, call.vector_values);
  const int32_t slot = row.run > call.segments.length() ? item.slot : -1;
  const typename Parts::Out out{call.y, call.sums, slot, first, row.first, item.begin, row.extent};
  multiply<Math>(wide, narrow, walk.steps(kDepth<typename Math::Element>), out);
}

template <typename Math>
cudaError_t launch(const Conv2dBsr& call, const LinePlan& plan, void* sums, cudaStream_t stream) {
  using T = typename Math::Element;
  const BlockIndex& index = call.index;
  const Conv2dShape& shape = call.shape;
  const int64_t plane = shape.out_size[0] * shape.out_size[1], pixels = shape.batch * plane;
  const auto side = static_cast<int32_t>(plan.side);
  Arguments<T> arguments{};
  arguments.index = index;
  arguments.segments = plan.segments(index, false);
  arguments.patches = patches_of_input<T>(shape, call.x);
  arguments.x = static_cast<const T*>(call.x);
  arguments.values = static_cast<const T*>(call.values);
  arguments.y = {static_cast<T*>(call.y), static_cast<const T*>(call.bias), pixels,
                 static_cast<int32_t>(shape.out_channels), static_cast<int32_t>(plane)};
  arguments.sums = {static_cast<accumulator_t<T>*>(sums), pixels, side};
  arguments.tiles = static_cast<int32_t>(pieces(side, Math::kHeight));
  arguments.vector_values = in_vectors<T>(call.values, index.cols, index.block_width);
  const int64_t pixel_tiles = pieces(pixels, kPixels);
  for (int64_t tile = 0; tile < pixel_tiles; tile += kMostOfGrid) {
    const auto tiles = static_cast<unsigned>(std::min(pixel_tiles - tile, kMostOfGrid));
    arguments.first = tile * kPixels;
    SNIPKERN_LAUNCH((conv2d_bsr_kernel<Math>), dim3(static_cast<unsigned>(plan.items * arguments.tiles), tiles),
                    dim3(kThreads), (Operands<Math>::kShared), stream, arguments);
    if (plan.slots > 0) {
      SNIPKERN_LAUNCH((join_segments_kernel<ImagePlanes<T>, BlockRow>), dim3(static_cast<unsigned>(plan.lines), tiles),
                      dim3(kThreads), 0, stream, index, arguments.segments, arguments.y, arguments.sums,
                      arguments.first, kPixels);
    }
  }
  return cudaGetLastError();
}

cudaError_t run(const Conv2dBsr& call, Scratch& scratch, cudaStream_t stream) {
  const LinePlan plan(call.index, false);
  const int64_t pixels = call.shape.batch * call.shape.out_size[0] * call.shape.out_size[1];
  void* const sums = scratch.take_bytes(plan.scratch(pixels, sum_bytes(call.dtype)));
  if (scratch.counting() || pixels == 0) return cudaSuccess;
  return with_math<kPixels>(call.dtype, call.allow_tf32, plan.side,
                            [&](auto tag) { return launch<typename decltype(tag)::type>(call, plan, sums, stream); });
}

}  // namespace

int64_t conv2d_bsr_scratch(const Conv2dBsr& call) {
  Scratch scratch(Scratch::Count{});
  run(call, scratch, nullptr);
  return scratch.bytes();
}

cudaError_t conv2d_bsr(const Conv2dBsr& call, cudaStream_t stream) {
  Scratch scratch(call.scratch);
  return run(call, scratch, stream);
}

}  // namespace snipkern::cuda
