// What a thread block does for a line (a block row, or a block column of the transposed weight): it finds its segment,
// and its sums go to the output or, where the line's list is cut, to scratch memory until they are joined.
#pragma once

#include "cuda/bsr_dispatch.cuh"
#include "cuda/bsr_lists.cuh"
#include "cuda/bsr_product.cuh"

namespace snipkern::cuda {

// The lines of a weight, on the host. Lists are cut where they are longer than four average ones, so that the sums of
// cut ones need half as many floats as there are outputs, and balanced weights are not cut.
struct LinePlan {
  int64_t lines, side, list_side;  // side of the lines' own blocks, and along their lists
  int shift;                       // of Segments
  int64_t items, slots;

  LinePlan(const BlockIndex& index, bool transpose) {
    lines = transpose ? index.block_cols : index.block_rows;
    side = transpose ? index.block_width : index.block_height;
    list_side = transpose ? index.block_height : index.block_width;
    shift = segment_shift(index.blocks * list_side, lines, transpose ? index.rows : index.cols);
    items = segment_items(index.blocks, lines, list_side, shift);
    slots = segment_slots(index.blocks, list_side, shift);
  }

  Segments segments(const BlockIndex& index, bool transpose) const {
    return {transpose ? index.col_ptr : index.ptr, static_cast<int32_t>(lines), static_cast<int32_t>(list_side), shift};
  }

  // Bytes for the sums of cut lists, over `rows` samples or pixels.
  int64_t scratch(int64_t rows, int bytes) const { return slots * rows * side * bytes; }
};

// The part of its line that a thread block takes: blockIdx.x counts segments, and in them narrow tiles of the line.
struct LineItem {
  int32_t number, segment, slot, begin;

  __device__ LineItem(const Segments& segments, int32_t tiles, int32_t tile_size) {
    const int32_t item = static_cast<int32_t>(blockIdx.x) / tiles;
    number = segments.line_of(item);
    const int32_t before = segments.before(number);
    segment = item - number - before;
    slot = 2 * before + segment;  // see segment_slots()
    begin = static_cast<int32_t>(blockIdx.x) % tiles * tile_size;
  }
};

// Sums of cut lists: [slot][row][place in the line], or with the rows inside. Rows are samples or pixels.
template <typename Sum, bool kRowsInner>
struct SegmentSums {
  Sum* sums;
  int64_t rows;
  int32_t side;

  __device__ Sum* at(int64_t slot, int64_t row, int32_t place) const {
    return sums + slot * rows * side + (kRowsInner ? place * rows + row : row * side + place);
  }
};

// Where multiply() writes: the places [begin, extent) of a line, for rows from `first` on. A target stores pieces of
// neighbouring sums, rows where kRowsInner, else places: `store(row, place of the output, sums, count)`.
template <typename Target>
struct LineOut {
  using Sum = typename Target::Sum;
  static constexpr bool kWideInner = Target::kRowsInner;

  Target target;
  SegmentSums<Sum, kWideInner> sums;
  int32_t slot;  // negative where the list is whole
  int64_t first;
  int32_t line, begin, extent;  // the line's first place in the output, this thread block's in the line, the line's end

  template <int N>
  __device__ void write(int wide, int narrow, Sum (&piece)[N]) const {
    const int64_t row = first + wide;
    const int32_t place = begin + narrow;
    if (row >= target.rows || place >= extent) return;
    const int64_t count = kWideInner ? target.rows - row : extent - place;
    if (slot >= 0) {
      store_piece<Sum>(sums.at(slot, row, place), piece, count);
    } else {
      target.store(row, line + place, piece, count);
    }
  }
};

// Adds the sums of a list's segments, in their order. Whole lists have been dealt with.
template <typename Target, typename Line>
__global__ void __launch_bounds__(kThreads)
    join_segments_kernel(BlockIndex index, Segments segments, Target target,
                         SegmentSums<typename Target::Sum, Target::kRowsInner> sums, int64_t first_row, int32_t rows) {
  using Sum = typename Target::Sum;
  const int32_t number = static_cast<int32_t>(blockIdx.x), length = segments.length();
  const Line line(index, number);
  if (line.list.length <= length) return;
  const int32_t count = (line.list.length - 1) / length + 1, slot = 2 * segments.before(number);
  const int64_t first = first_row + static_cast<int64_t>(blockIdx.y) * rows;
  const int32_t here = static_cast<int32_t>(min(target.rows - first, static_cast<int64_t>(rows)));
  for (int32_t e = static_cast<int32_t>(threadIdx.x); e < here * line.extent; e += kThreads) {
    const int32_t inner = Target::kRowsInner ? here : line.extent;
    const int64_t row = first + (Target::kRowsInner ? e % inner : e / inner);
    const int32_t place = Target::kRowsInner ? e / inner : e % inner;
    Sum sum[1] = {0};
    for (int32_t segment = 0; segment < count; ++segment) sum[0] += *sums.at(slot + segment, row, place);
    target.store(row, line.first + place, sum, 1);
  }
}

// y [rows, outputs], row-major.
template <typename T>
struct SampleRows {
  using Sum = accumulator_t<T>;
  static constexpr bool kRowsInner = false;

  T* y;
  const T* bias;
  int64_t rows;
  int32_t outputs;

  template <int N>
  __device__ void store(int64_t row, int32_t place, Sum (&piece)[N], int64_t count) const {
    if (bias != nullptr) {
#pragma unroll
      for (int i = 0; i < N; ++i) {
        if (i < count) piece[i] += to_accumulator(bias[place + i]);
      }
    }
    store_piece<T>(y + row * outputs + place, piece, count);
  }
};

}  // namespace snipkern::cuda
