#include "cuda/sddmm_bsr.h"

#include "cuda/bsr_loaders.cuh"
#include "cuda/bsr_order.h"
#include "cuda/bsr_splits.cuh"

namespace snipkern::cuda {
namespace {

constexpr int kColumns = 64;      // kept columns of a thread block
constexpr int kColumnsShift = 6;  // segments of a block row's list, one for each of its thread blocks

template <typename T>
struct Arguments {
  BlockIndex index;
  Segments segments;
  Splits splits;
  const T *a, *b;
  T* values;
  accumulator_t<T>* sums;  // [splits][nnz] where there are several
  int64_t batch;
  int32_t tiles;  // narrow tiles of a block's height
  bool vector_a, vector_b;
};

template <typename Math>
struct Operands {
  using T = typename Math::Element;
  using Wide = SampleDepth<Tile<T, Math::kWidth, Inner::kExtent>>;
  using Narrow = SampleDepth<Tile<T, Math::kHeight, Inner::kExtent>>;
  static constexpr int kShared = shared_bytes<Math, Wide, Narrow, RunPieces<T>>();
};

// A thread block: some kept columns of one narrow tile of a block row, over some of the samples.
template <typename Math>
__global__ void __launch_bounds__(kThreads, kResident) sddmm_bsr_kernel(const Arguments<typename Math::Element> call) {
  using T = typename Math::Element;
  const LineItem item(call.segments, call.tiles, Math::kHeight);
  const BlockRow row(call.index, item.number);
  const Walk columns = call.segments.walk(item.segment, row.run);
  if (item.begin >= row.extent || columns.begin == columns.end) return;
  const int64_t first = blockIdx.y * call.splits.length, last = min(call.batch, first + call.splits.length);
  typename Operands<Math>::Wide wide(call.b, first, last, call.index.cols, row.list, columns.begin, call.vector_b);
  typename Operands<Math>::Narrow narrow(call.a, first, last, call.index.rows, PlainList{row.first, row.extent},
                                         item.begin, call.vector_a);
  const RunPieces<T> out(call.values, call.sums, call.splits.count, call.index.nnz, row, item.begin, columns.begin);
  multiply<Math>(wide, narrow, static_cast<int32_t>((last - first + kDepth<T> - 1) / kDepth<T>), out);
}

template <typename Math>
cudaError_t launch(const SddmmBsr& call, const Splits& splits, int64_t items, void* sums, cudaStream_t stream) {
  using T = typename Math::Element;
  const BlockIndex& index = call.index;
  Arguments<T> arguments{};
  arguments.index = index;
  arguments.segments = {index.ptr, index.block_rows, index.block_width, kColumnsShift};
  arguments.splits = splits;
  arguments.a = static_cast<const T*>(call.a);
  arguments.b = static_cast<const T*>(call.b);
  arguments.values = static_cast<T*>(call.values);
  arguments.sums = static_cast<accumulator_t<T>*>(sums);
  arguments.batch = call.batch;
  arguments.tiles = static_cast<int32_t>(pieces(index.block_height, Math::kHeight));
  arguments.vector_a = in_vectors<T>(call.a, index.rows, index.block_height);
  arguments.vector_b = in_vectors<T>(call.b, index.cols, index.block_width);
  SNIPKERN_LAUNCH((sddmm_bsr_kernel<Math>),
                  dim3(static_cast<unsigned>(items * arguments.tiles), static_cast<unsigned>(splits.count)),
                  dim3(kThreads), (Operands<Math>::kShared), stream, arguments);
  return join_splits<T>(arguments.sums, splits, index.nnz, arguments.values, stream);
}

}  // namespace

cudaError_t sddmm_bsr_on_grid(const SddmmBsr& call, Scratch& scratch, cudaStream_t stream) {
  const BlockIndex& index = call.index;
  const int64_t items = segment_items(index.blocks, index.block_rows, index.block_width, kColumnsShift);
  const Splits splits(call.batch, items * pieces(index.block_height, 64));
  void* const sums = scratch.take_bytes(splits.scratch(index.nnz, sum_bytes(call.dtype)));
  if (scratch.counting() || index.nnz == 0) return cudaSuccess;
  return with_math<kColumns>(call.dtype, call.allow_tf32, index.block_height, [&](auto tag) {
    return launch<typename decltype(tag)::type>(call, splits, items, sums, stream);
  });
}

namespace {

cudaError_t with_orders(const SddmmBsr& call, Scratch& scratch, cudaStream_t stream) {
  const BlockIndex& index = call.index;
  if (index.row_place == nullptr) return sddmm_bsr_on_grid(call, scratch, stream);
  Reordering reorder(scratch, dtype_bytes(call.dtype), stream);
  SddmmBsr on_grid = call;
  on_grid.a = reorder.gathered(call.a, reorder.inverse(index.row_place, index.rows), call.batch, index.rows);
  on_grid.b = reorder.gathered(call.b, reorder.inverse(index.col_place, index.cols), call.batch, index.cols);
  reorder.then(sddmm_bsr_on_grid(on_grid, scratch, stream));
  return reorder.error();
}

}  // namespace

int64_t sddmm_bsr_scratch(const SddmmBsr& call) {
  Scratch scratch(Scratch::Count{});
  with_orders(call, scratch, nullptr);
  return scratch.bytes();
}

cudaError_t sddmm_bsr(const SddmmBsr& call, cudaStream_t stream) {
  Scratch scratch(call.scratch);
  return with_orders(call, scratch, stream);
}

}  // namespace snipkern::cuda
