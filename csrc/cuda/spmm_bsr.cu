#include "cuda/spmm_bsr.h"

#include <type_traits>

#include "cuda/bsr_lines.cuh"
#include "cuda/bsr_loaders.cuh"
#include "cuda/bsr_order.h"

namespace snipkern::cuda {
namespace {

constexpr int kSamples = 128;  // of a thread block

template <typename T>
struct Arguments {
  BlockIndex index;
  Segments segments;
  const T *x, *values;
  SampleRows<T> y;
  SegmentSums<accumulator_t<T>, false> sums;
  int64_t first;          // sample
  int32_t inputs, tiles;  // features of x; narrow tiles of a line
  bool vector_x, vector_values;
};

template <typename Math, bool kTranspose>
struct Operands {
  using T = typename Math::Element;
  using Wide = GatheredSamples<Tile<T, Math::kWidth, Inner::kDepth>>;
  using Narrow = std::conditional_t<kTranspose, ColumnValues<Tile<T, Math::kHeight, Inner::kExtent>>,
                                    RunValues<Tile<T, Math::kHeight, Inner::kDepth>>>;
  using Line = std::conditional_t<kTranspose, BlockColumn, BlockRow>;
  using Out = LineOut<SampleRows<T>>;
  static constexpr int kShared = shared_bytes<Math, Wide, Narrow, Out>();
};

// A thread block: some samples, and the outputs of one narrow tile of a block row (a block column with kTranspose).
template <typename Math, bool kTranspose>
__global__ void __launch_bounds__(kThreads, kResident) spmm_bsr_kernel(const Arguments<typename Math::Element> call) {
  using Parts = Operands<Math, kTranspose>;
  using T = typename Math::Element;
  const LineItem item(call.segments, call.tiles, Math::kHeight);
  const typename Parts::Line line(call.index, item.number);
  const Walk walk = call.segments.walk(item.segment, line.list.length);
  if (item.begin >= line.extent || (item.segment > 0 && walk.begin == walk.end)) return;
  const int64_t first = call.first + static_cast<int64_t>(blockIdx.y) * Math::kWidth;
  typename Parts::Wide wide(call.x, first, call.y.rows, call.inputs, line.list, walk, call.vector_x);
  typename Parts::Narrow narrow(call.values, call.index, line, item.begin, walk, call.vector_values);
  const int32_t slot = line.list.length > call.segments.length() ? item.slot : -1;
  const typename Parts::Out out{call.y, call.sums, slot, first, line.first, item.begin, line.extent};
  multiply<Math>(wide, narrow, walk.steps(kDepth<T>), out);
}

template <typename Math, bool kTranspose>
cudaError_t launch(const SpmmBsr& call, const LinePlan& plan, void* sums, cudaStream_t stream) {
  using T = typename Math::Element;
  using Parts = Operands<Math, kTranspose>;
  const BlockIndex& index = call.index;
  const auto side = static_cast<int32_t>(plan.side);
  Arguments<T> arguments{};
  arguments.index = index;
  arguments.segments = plan.segments(index, kTranspose);
  arguments.x = static_cast<const T*>(call.x);
  arguments.values = static_cast<const T*>(call.values);
  arguments.y = {static_cast<T*>(call.y), static_cast<const T*>(call.bias), call.batch, call.outputs()};
  arguments.sums = {static_cast<accumulator_t<T>*>(sums), call.batch, side};
  arguments.inputs = call.inputs();
  arguments.tiles = static_cast<int32_t>(pieces(side, Math::kHeight));
  arguments.vector_x = in_vectors<T>(call.x, call.inputs(), plan.list_side);
  arguments.vector_values = in_vectors<T>(call.values, index.cols, index.block_width);
  const int64_t sample_tiles = pieces(call.batch, kSamples);
  for (int64_t tile = 0; tile < sample_tiles; tile += kMostOfGrid) {
    const auto tiles = static_cast<unsigned>(std::min(sample_tiles - tile, kMostOfGrid));
    arguments.first = tile * kSamples;
    SNIPKERN_LAUNCH((spmm_bsr_kernel<Math, kTranspose>),
                    dim3(static_cast<unsigned>(plan.items * arguments.tiles), tiles), dim3(kThreads), (Parts::kShared),
                    stream, arguments);
    if (plan.slots > 0) {
      SNIPKERN_LAUNCH((join_segments_kernel<SampleRows<T>, typename Parts::Line>),
                      dim3(static_cast<unsigned>(plan.lines), tiles), dim3(kThreads), 0, stream, index,
                      arguments.segments, arguments.y, arguments.sums, arguments.first, kSamples);
    }
  }
  return cudaGetLastError();
}

}  // namespace

cudaError_t spmm_bsr_on_grid(const SpmmBsr& call, Scratch& scratch, cudaStream_t stream) {
  const LinePlan plan(call.index, call.transpose);
  void* const sums = scratch.take_bytes(plan.scratch(call.batch, sum_bytes(call.dtype)));
  if (scratch.counting() || call.batch == 0 || call.outputs() == 0) return cudaSuccess;
  return with_math<kSamples>(call.dtype, call.allow_tf32, plan.side, [&](auto tag) {
    using Math = typename decltype(tag)::type;
    return call.transpose ? launch<Math, true>(call, plan, sums, stream)
                          : launch<Math, false>(call, plan, sums, stream);
  });
}

namespace {

cudaError_t with_orders(const SpmmBsr& call, Scratch& scratch, cudaStream_t stream) {
  if (call.index.row_place == nullptr) return spmm_bsr_on_grid(call, scratch, stream);
  Reordering reorder(scratch, dtype_bytes(call.dtype), stream);
  SpmmBsr on_grid = call;
  const int32_t* const input_order = reorder.inverse(call.input_place(), call.inputs());
  on_grid.x = reorder.gathered(call.x, input_order, call.batch, call.inputs());
  if (call.bias != nullptr) {
    const int32_t* const output_order = reorder.inverse(call.output_place(), call.outputs());
    on_grid.bias = reorder.gathered(call.bias, output_order, 1, call.outputs());
  }
  on_grid.y = reorder.matrix(call.batch, call.outputs());
  reorder.then(spmm_bsr_on_grid(on_grid, scratch, stream));
  reorder.gather(on_grid.y, call.output_place(), call.batch, call.outputs(), call.y);
  return reorder.error();
}

}  // namespace

int64_t spmm_bsr_scratch(const SpmmBsr& call) {
  Scratch scratch(Scratch::Count{});
  with_orders(call, scratch, nullptr);
  return scratch.bytes();
}

cudaError_t spmm_bsr(const SpmmBsr& call, cudaStream_t stream) {
  Scratch scratch(call.scratch);
  return with_orders(call, scratch, stream);
}

}  // namespace snipkern::cuda
