#include "cuda/bsr_patches.cuh"
#include "cuda/bsr_splits.cuh"
#include "cuda/conv2d_bsr.h"

namespace snipkern::cuda {
namespace {

constexpr int kColumns = 64;      // kept patch elements of a thread block
constexpr int kColumnsShift = 6;  // segments of a block row's list, one for each of its thread blocks

template <typename T>
struct Arguments {
  BlockIndex index;
  Segments segments;
  Splits splits;
  PatchGeometry patches, pixels;
  const T *x, *grad;
  T* values;
  accumulator_t<T>* sums;  // [splits][nnz] where there are several
  int64_t count;           // pixels of all images
  int32_t tiles;           // narrow tiles of a block's height
};

template <typename Math>
struct Operands {
  using T = typename Math::Element;
  using Wide = PixelDepth<Tile<T, Math::kWidth, Inner::kDepth>>;
  using Narrow = PixelDepth<Tile<T, Math::kHeight, Inner::kDepth>>;
  static constexpr int kShared = shared_bytes<Math, Wide, Narrow, RunPieces<T>>();
};

// A thread block: some kept columns of one narrow tile of a block row, over some of the pixels.
template <typename Math>
__global__ void __launch_bounds__(kThreads, kResident)
    conv2d_bsr_weight_grad_kernel(const Arguments<typename Math::Element> call) {
  using T = typename Math::Element;
  const LineItem item(call.segments, call.tiles, Math::kHeight);
  const BlockRow row(call.index, item.number);
  const Walk columns = call.segments.walk(item.segment, row.run);
  if (item.begin >= row.extent || columns.begin == columns.end) return;
  const int64_t first = blockIdx.y * call.splits.length, last = min(call.count, first + call.splits.length);
  typename Operands<Math>::Wide wide(call.x, call.patches, first, last, row.list, columns.begin);
  typename Operands<Math>::Narrow narrow(call.grad, call.pixels, first, last, PlainList{row.first, row.extent},
                                         item.begin);
  const RunPieces<T> out(call.values, call.sums, call.splits.count, call.index.nnz, row, item.begin, columns.begin);
  multiply<Math>(wide, narrow, static_cast<int32_t>((last - first + kDepth<T> - 1) / kDepth<T>), out);
}

template <typename Math>
cudaError_t launch(const Conv2dBsrWeightGrad& call, const Splits& splits, int64_t items, void* sums,
                   cudaStream_t stream) {
  using T = typename Math::Element;
  const BlockIndex& index = call.index;
  const Conv2dShape& shape = call.shape;
  Arguments<T> arguments{};
  arguments.index = index;
  arguments.segments = {index.ptr, index.block_rows, index.block_width, kColumnsShift};
  arguments.splits = splits;
  arguments.patches = patches_of_input<T>(shape, call.x);
  arguments.pixels = pixels_of_output<T>(shape, call.grad);
  arguments.x = static_cast<const T*>(call.x);
  arguments.grad = static_cast<const T*>(call.grad);
  arguments.values = static_cast<T*>(call.values);
  arguments.sums = static_cast<accumulator_t<T>*>(sums);
  arguments.count = shape.batch * shape.out_size[0] * shape.out_size[1];
  arguments.tiles = static_cast<int32_t>(pieces(index.block_height, Math::kHeight));
  SNIPKERN_LAUNCH((conv2d_bsr_weight_grad_kernel<Math>),
                  dim3(static_cast<unsigned>(items * arguments.tiles), static_cast<unsigned>(splits.count)),
                  dim3(kThreads), (Operands<Math>::kShared), stream, arguments);
  return join_splits<T>(arguments.sums, splits, index.nnz, arguments.values, stream);
}

cudaError_t run(const Conv2dBsrWeightGrad& call, Scratch& scratch, cudaStream_t stream) {
  const BlockIndex& index = call.index;
  const Conv2dShape& shape = call.shape;
  const int64_t items = segment_items(index.blocks, index.block_rows, index.block_width, kColumnsShift);
  const Splits splits(shape.batch * shape.out_size[0] * shape.out_size[1], items * pieces(index.block_height, 64));
  void* const sums = scratch.take_bytes(splits.scratch(index.nnz, sum_bytes(call.dtype)));
  if (scratch.counting() || index.nnz == 0) return cudaSuccess;
  return with_math<kColumns>(call.dtype, call.allow_tf32, index.block_height, [&](auto tag) {
    return launch<typename decltype(tag)::type>(call, splits, items, sums, stream);
  });
}

}  // namespace

int64_t conv2d_bsr_weight_grad_scratch(const Conv2dBsrWeightGrad& call) {
  Scratch scratch(Scratch::Count{});
  run(call, scratch, nullptr);
  return scratch.bytes();
}

cudaError_t conv2d_bsr_weight_grad(const Conv2dBsrWeightGrad& call, cudaStream_t stream) {
  Scratch scratch(call.scratch);
  return run(call, scratch, stream);
}

}  // namespace snipkern::cuda
