#include "cuda/bsr_lines.cuh"
#include "cuda/bsr_loaders.cuh"
#include "cuda/bsr_patches.cuh"
#include "cuda/conv2d_bsr.h"

// The gradients of patches are a product like a linear layer's input gradient, and each element of the image sums those
// of all patches that it is in. They are computed for some images, or some channels of one image, at a time: so many
// that they stay in the cache between the two kernels.

namespace snipkern::cuda {
namespace {

constexpr int kPixels = 128;  // of a thread block
#ifdef SNIPKERN_ON_HOST
constexpr int64_t kPatchBytes = 32 << 10;  // small images take several parts there, as large ones do elsewhere
#else
constexpr int64_t kPatchBytes = 24 << 20;  // under the L2 cache of an A100 (40 MB) or newer
#endif

// The gradients of the patches of some pixels: [columns][pixels], the columns from `first_column` on. A target of
// LineOut.
template <typename T>
struct PatchSums {
  using Sum = accumulator_t<T>;
  static constexpr bool kRowsInner = true;

  Sum* sums;
  int64_t rows;
  int32_t first_column;

  template <int N>
  __device__ void store(int64_t row, int32_t column, Sum (&piece)[N], int64_t count) const {
    store_piece<Sum>(sums + (column - first_column) * rows + row, piece, count);
  }
};

template <typename T>
struct Arguments {
  BlockIndex index;
  PatchGeometry pixels;  // of grad
  const T *grad, *values;
  PatchSums<T> patches;
  int64_t first;              // pixel
  int32_t first_line, tiles;  // the first block column; narrow tiles of each
  bool vector_values;
};

template <typename Math>
struct Operands {
  using T = typename Math::Element;
  using Wide = PixelPlaces<Tile<T, Math::kWidth, Inner::kExtent>>;
  using Narrow = ColumnValues<Tile<T, Math::kHeight, Inner::kExtent>>;
  using Out = LineOut<PatchSums<T>>;
  static constexpr int kShared = shared_bytes<Math, Wide, Narrow, Out>();
};

// A thread block: some pixels, and one narrow tile of a block column. Its list has the output channels at most, so it
// is not cut.
template <typename Math>
__global__ void __launch_bounds__(kThreads, kResident) patch_grad_kernel(const Arguments<typename Math::Element> call) {
  using Parts = Operands<Math>;
  const int32_t number = call.first_line + static_cast<int32_t>(blockIdx.x) / call.tiles;
  const int32_t begin = static_cast<int32_t>(blockIdx.x) % call.tiles * Math::kHeight;
  const BlockColumn column(call.index, number);
  if (begin >= column.extent) return;
  const Walk walk{0, column.list.length};
  const int64_t first = call.first + static_cast<int64_t>(blockIdx.y) * Math::kWidth;
  typename Parts::Wide wide(call.grad, call.pixels, first, call.patches.rows, column.list, walk);
  typename Parts::Narrow narrow(call.values, call.index, column, begin, walk, call.vector_values);
  const typename Parts::Out out{call.patches, {}, -1, first, column.first, begin, column.extent};
  multiply<Math>(wide, narrow, walk.steps(kDepth<typename Math::Element>), out);
}

// Some images and channels of the input's gradient.
template <typename T>
struct Fold {
  PatchGeometry geometry;
  PatchSums<T> patches;
  T* grad_x;  // of the first image
  int32_t first_channel, kernel_height;
};

template <typename T>
__global__ void __launch_bounds__(kThreads) fold_patches_kernel(const Fold<T> call) {
  const PatchGeometry& geometry = call.geometry;
  const int32_t size = geometry.size[0] * geometry.size[1], plane = geometry.plane();
  const int32_t place = static_cast<int32_t>(blockIdx.x * kThreads + threadIdx.x);
  if (place >= size) return;
  const int32_t row = place / geometry.size[1] + geometry.padding[0];
  const int32_t col = place % geometry.size[1] + geometry.padding[1];
  const int32_t channel = call.first_channel + static_cast<int32_t>(blockIdx.y);
  const int64_t image = blockIdx.z;
  const accumulator_t<T>* sums =
      call.patches.sums + (channel * geometry.taps - call.patches.first_column) * call.patches.rows + image * plane;
  accumulator_t<T> sum = 0;
  for (int32_t i = 0; i < call.kernel_height; ++i) {
    const int32_t down = row - i * geometry.dilation[0], out_row = down / geometry.stride[0];
    const bool in_rows = down >= 0 && out_row * geometry.stride[0] == down && out_row < geometry.out_size[0];
    for (int32_t j = 0; j < geometry.kernel_width; ++j, sums += call.patches.rows) {
      const int32_t right = col - j * geometry.dilation[1], out_col = right / geometry.stride[1];
      if (in_rows && right >= 0 && out_col * geometry.stride[1] == right && out_col < geometry.out_size[1]) {
        sum += sums[out_row * geometry.out_size[1] + out_col];
      }
    }
  }
  call.grad_x[(image * geometry.channels + channel) * size + place] = round_to<T>(sum);
}

// How many images, and channels of them, have their patches' gradients in memory at once.
struct Parts {
  int64_t images, channels, lines;  // lines: block columns that the channels reach into, at most

  explicit Parts(const Conv2dBsrInputGrad& call) {
    const BlockIndex& index = call.index;
    const Conv2dShape& shape = call.shape;
    const int64_t taps = shape.kernel[0] * shape.kernel[1];
    const int64_t column = shape.out_size[0] * shape.out_size[1] * sum_bytes(call.dtype);  // bytes for one image
    const int64_t line = column * index.block_width, whole = line * index.block_cols;
    images = std::clamp<int64_t>(kPatchBytes / whole, 1, std::min(shape.batch, kMostOfGrid));
    channels = std::min(shape.in_channels, kMostOfGrid);
    if (whole > kPatchBytes) channels = std::clamp<int64_t>(kPatchBytes / (column * taps), 1, channels);
    lines = std::min<int64_t>(index.block_cols, channels * taps / index.block_width + 2);
  }
};

template <typename Math>
cudaError_t launch(const Conv2dBsrInputGrad& call, const Parts& parts, void* sums, cudaStream_t stream) {
  using T = typename Math::Element;
  const BlockIndex& index = call.index;
  const Conv2dShape& shape = call.shape;
  const int64_t taps = shape.kernel[0] * shape.kernel[1], plane = shape.out_size[0] * shape.out_size[1];
  const int64_t size = shape.size[0] * shape.size[1];
  Arguments<T> product{};
  product.index = index;
  product.pixels = pixels_of_output<T>(shape, call.grad);
  product.values = static_cast<const T*>(call.values);
  product.patches.sums = static_cast<accumulator_t<T>*>(sums);
  product.tiles = static_cast<int32_t>(pieces(index.block_width, Math::kHeight));
  product.vector_values = in_vectors<T>(call.values, index.cols, index.block_width);
  Fold<T> fold{};
  fold.geometry = patches_of_input<T>(shape, nullptr);
  fold.kernel_height = static_cast<int32_t>(shape.kernel[0]);
  for (int64_t image = 0; image < shape.batch; image += parts.images) {
    const int64_t images = std::min(parts.images, shape.batch - image);
    product.grad = static_cast<const T*>(call.grad) + image * shape.out_channels * plane;
    product.patches.rows = images * plane;
    fold.grad_x = static_cast<T*>(call.grad_x) + image * shape.in_channels * size;
    for (int64_t channel = 0; channel < shape.in_channels; channel += parts.channels) {
      const int64_t channels = std::min(parts.channels, shape.in_channels - channel);
      const int64_t line = channel * taps / index.block_width;
      const int64_t lines = pieces((channel + channels) * taps, index.block_width) - line;
      product.first_line = static_cast<int32_t>(line);
      product.patches.first_column = static_cast<int32_t>(line * index.block_width);
      const int64_t pixel_tiles = pieces(product.patches.rows, kPixels);
      for (int64_t tile = 0; tile < pixel_tiles; tile += kMostOfGrid) {
        product.first = tile * kPixels;
        SNIPKERN_LAUNCH((patch_grad_kernel<Math>),
                        dim3(static_cast<unsigned>(lines * product.tiles),
                             static_cast<unsigned>(std::min(pixel_tiles - tile, kMostOfGrid))),
                        dim3(kThreads), (Operands<Math>::kShared), stream, product);
      }
      fold.patches = product.patches;
      fold.first_channel = static_cast<int32_t>(channel);
      SNIPKERN_LAUNCH((fold_patches_kernel<T>),
                      dim3(static_cast<unsigned>(pieces(size, kThreads)), static_cast<unsigned>(channels),
                           static_cast<unsigned>(images)),
                      dim3(kThreads), 0, stream, fold);
    }
  }
  return cudaGetLastError();
}

cudaError_t run(const Conv2dBsrInputGrad& call, Scratch& scratch, cudaStream_t stream) {
  const Conv2dShape& shape = call.shape;
  if (shape.batch == 0) return cudaSuccess;
  const Parts parts(call);
  const int64_t plane = shape.out_size[0] * shape.out_size[1];
  void* const sums =
      scratch.take_bytes(parts.lines * call.index.block_width * parts.images * plane * sum_bytes(call.dtype));
  if (scratch.counting() || shape.size[0] * shape.size[1] == 0) return cudaSuccess;
  return with_math<kPixels>(call.dtype, call.allow_tf32, call.index.block_width,
                            [&](auto tag) { return launch<typename decltype(tag)::type>(call, parts, sums, stream); });
}

}  // namespace

int64_t conv2d_bsr_input_grad_scratch(const Conv2dBsrInputGrad& call) {
  Scratch scratch(Scratch::Count{});
  run(call, scratch, nullptr);
  return scratch.bytes();
}

cudaError_t conv2d_bsr_input_grad(const Conv2dBsrInputGrad& call, cudaStream_t stream) {
  Scratch scratch(call.scratch);
  return run(call, scratch, stream);
}

}  // namespace snipkern::cuda
