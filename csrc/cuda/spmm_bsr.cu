#include "cuda/spmm_bsr.h"

#include <type_traits>

#include "cuda/bsr_dispatch.cuh"
#include "cuda/bsr_loaders.cuh"
#include "cuda/bsr_order.h"
#include "cuda/bsr_product.cuh"

namespace snipkern::cuda {
namespace {

constexpr int kSamples = 128;  // of a thread block

template <typename T>
struct Arguments {
  using Sum = accumulator_t<T>;

  BlockIndex index;
  Segments segments;
  const T *x, *values, *bias;
  T* y;
  Sum* sums;  // [slot][batch][side]: of the segments of lists that are cut
  int64_t first, batch;
  int32_t side, tiles;  // of an output's blocks; narrow tiles of a block
  int32_t inputs, outputs;
  bool vector_x, vector_values;

  // The place of a segment's sums, of a line with `before` segments before it; see segment_slots().
  __device__ int64_t slot(int32_t before, int32_t segment) const { return 2 * static_cast<int64_t>(before) + segment; }
};

// Rows of y [batch, outputs], or of the sums of one segment.
template <typename T>
struct SampleRows {
  using Sum = accumulator_t<T>;
  static constexpr bool kWideInner = false;

  T* y;
  Sum* sums;  // of this segment, else null
  const T* bias;
  int64_t first, batch;
  int32_t stride, begin, end;  // in a row

  template <int N>
  __device__ void write(int wide, int narrow, Sum (&piece)[N]) const {
    const int64_t row = first + wide;
    const int32_t place = begin + narrow;
    if (row >= batch || place >= end) return;
    if (sums != nullptr) {
      store_piece<Sum>(sums + row * stride + place, piece, end - place);
      return;
    }
    if (bias != nullptr) {
#pragma unroll
      for (int i = 0; i < N; ++i) {
        if (place + i < end) piece[i] += to_accumulator(bias[place + i]);
      }
    }
    store_piece<T>(y + row * stride + place, piece, end - place);
  }
};

template <typename Math, bool kTranspose>
struct Operands {
  using T = typename Math::Element;
  using Wide = GatheredSamples<Tile<T, Math::kWidth, Inner::kDepth>>;
  using Narrow = std::conditional_t<kTranspose, ColumnValues<Tile<T, Math::kHeight, Inner::kExtent>>,
                                    RunValues<Tile<T, Math::kHeight, Inner::kDepth>>>;
  using Line = std::conditional_t<kTranspose, BlockColumn, BlockRow>;
  static constexpr int kShared = shared_bytes<Math, Wide, Narrow, SampleRows<T>>();
};

// A thread block: some samples, and the outputs of one narrow tile of a block row (a block column with kTranspose).
template <typename Math, bool kTranspose>
__global__ void __launch_bounds__(kThreads, kResident) spmm_bsr_kernel(const Arguments<typename Math::Element> call) {
  using Parts = Operands<Math, kTranspose>;
  using T = typename Math::Element;
  const int32_t item = static_cast<int32_t>(blockIdx.x) / call.tiles;
  const int32_t number = call.segments.line_of(item), before = call.segments.before(number);
  const int32_t segment = item - number - before;
  const typename Parts::Line line(call.index, number);
  const int32_t begin = static_cast<int32_t>(blockIdx.x) % call.tiles * Math::kHeight;
  const Walk walk = call.segments.walk(segment, line.list.length);
  if (begin >= line.extent || (segment > 0 && walk.begin == walk.end)) return;
  const int64_t first = call.first + static_cast<int64_t>(blockIdx.y) * Math::kWidth;
  typename Parts::Wide wide(call.x, first, call.batch, call.inputs, line.list, walk, call.vector_x);
  typename Parts::Narrow narrow(call.values, call.index, line, begin, walk, call.vector_values);
  SampleRows<T> out{call.y,       nullptr,          call.bias, first, call.batch, call.outputs, line.first + begin,
                    line.first + line.extent};
  if (line.list.length > call.segments.length()) {
    out.sums = call.sums + call.slot(before, segment) * call.batch * call.side;
    out.stride = call.side;
    out.begin = begin;
    out.end = line.extent;
  }
  multiply<Math>(wide, narrow, walk.steps(kDepth<T>), out);
}

// Adds the sums of a list's segments, in their order; lists that are whole have been dealt with.
template <typename T, bool kTranspose>
__global__ void __launch_bounds__(kThreads) join_segments_kernel(const Arguments<T> call) {
  using Sum = accumulator_t<T>;
  const int32_t number = static_cast<int32_t>(blockIdx.x);
  const std::conditional_t<kTranspose, BlockColumn, BlockRow> line(call.index, number);
  const int32_t segments = line.list.length / call.segments.length() + (line.list.length % call.segments.length() > 0);
  if (segments <= 1) return;
  const int64_t first = call.first + static_cast<int64_t>(blockIdx.y) * kSamples;
  const int64_t last = min(call.batch, first + kSamples), slot_size = call.batch * call.side;
  const Sum* const sums = call.sums + call.slot(call.segments.before(number), 0) * slot_size;
  for (int64_t e = first * line.extent + threadIdx.x; e < last * line.extent; e += kThreads) {
    const int64_t row = e / line.extent;
    const int32_t place = static_cast<int32_t>(e - row * line.extent);
    Sum sum = call.bias == nullptr ? 0 : to_accumulator(call.bias[line.first + place]);
    for (int32_t segment = 0; segment < segments; ++segment) {
      sum += sums[segment * slot_size + row * call.side + place];
    }
    call.y[row * call.outputs + line.first + place] = round_to<T>(sum);
  }
}

struct Lines {
  int64_t count, side, list_side, longest;  // side of an output's blocks, of those that a list consists of

  explicit Lines(const SpmmBsr& call) {
    const BlockIndex& index = call.index;
    count = call.transpose ? index.block_cols : index.block_rows;
    side = call.transpose ? index.block_width : index.block_height;
    list_side = call.transpose ? index.block_height : index.block_width;
    longest = call.inputs();
  }

  int shift(const BlockIndex& index) const { return segment_shift(index.blocks * list_side, count, longest); }
};

template <typename Math, bool kTranspose>
cudaError_t launch(const SpmmBsr& call, void* sums, cudaStream_t stream) {
  using T = typename Math::Element;
  const Lines lines(call);
  const BlockIndex& index = call.index;
  const int shift = lines.shift(index);
  Arguments<T> arguments{};
  arguments.index = index;
  arguments.segments = {kTranspose ? index.col_ptr : index.ptr, static_cast<int32_t>(lines.count),
                        static_cast<int32_t>(lines.list_side), shift};
  arguments.x = static_cast<const T*>(call.x);
  arguments.values = static_cast<const T*>(call.values);
  arguments.bias = static_cast<const T*>(call.bias);
  arguments.y = static_cast<T*>(call.y);
  arguments.sums = static_cast<accumulator_t<T>*>(sums);
  arguments.batch = call.batch;
  arguments.side = static_cast<int32_t>(lines.side);
  arguments.tiles = static_cast<int32_t>(pieces(lines.side, Math::kHeight));
  arguments.inputs = call.inputs();
  arguments.outputs = call.outputs();
  arguments.vector_x = in_vectors<T>(call.x, call.inputs(), lines.list_side);
  arguments.vector_values = in_vectors<T>(call.values, index.cols, index.block_width);
  const int64_t items = segment_items(index.blocks, lines.count, lines.list_side, shift);
  const int64_t sample_tiles = pieces(call.batch, kSamples);
  for (int64_t tile = 0; tile < sample_tiles; tile += kMostOfGrid) {
    const auto tiles = static_cast<unsigned>(std::min(sample_tiles - tile, kMostOfGrid));
    arguments.first = tile * kSamples;
    SNIPKERN_LAUNCH((spmm_bsr_kernel<Math, kTranspose>), dim3(static_cast<unsigned>(items * arguments.tiles), tiles),
                    dim3(kThreads), (Operands<Math, kTranspose>::kShared), stream, arguments);
    if (shift < 31) {
      SNIPKERN_LAUNCH((join_segments_kernel<T, kTranspose>), dim3(static_cast<unsigned>(lines.count), tiles),
                      dim3(kThreads), 0, stream, arguments);
    }
  }
  return cudaGetLastError();
}

}  // namespace

cudaError_t spmm_bsr_on_grid(const SpmmBsr& call, Scratch& scratch, cudaStream_t stream) {
  const Lines lines(call);
  const int64_t slots = segment_slots(call.index.blocks, lines.list_side, lines.shift(call.index));
  void* const sums = scratch.take_bytes(slots * call.batch * lines.side * sum_bytes(call.dtype));
  if (scratch.counting() || call.batch == 0 || call.outputs() == 0) return cudaSuccess;
  return with_math<kSamples>(call.dtype, call.allow_tf32, lines.side, [&](auto tag) {
    using Math = typename decltype(tag)::type;
    return call.transpose ? launch<Math, true>(call, sums, stream) : launch<Math, false>(call, sums, stream);
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
