// See conv2d_bsr.h and conv_plan.h. Compiled once per ISA tier.
//
// Forward and weight gradient: the channels of a block row read the same taps,
// so strips of them share each load of the slab. The input gradient walks lists
// of single weights: columns of a block are other taps of the same input
// channel or other input channels, which read other places of the output's
// gradient. The lists go block by block, so that what a block's columns read is
// still in L1.

#include "cpu/conv_lists.kernel.h"

namespace snipkern {
namespace SNIPKERN_TIER {
namespace {

// The kept columns of each block row, in kColumns.
inline RowLists block_row_lists(const BsrIndex& index, const TaskRunner& run) {
  const int64_t groups = index.block_rows();
  int64_t columns = 0;
  for (int64_t group = 0; group < groups; ++group) columns += index.run_length(group);
  int32_t* ptr = scratch<int32_t>(Slot::kColumns, groups + 1 + columns);
  int32_t* column = ptr + groups + 1;
  ptr[0] = 0;
  for (int64_t group = 0; group < groups; ++group) {
    ptr[group + 1] = ptr[group] + static_cast<int32_t>(index.run_length(group));
  }
  run_stretches(run, 2.0 * columns, groups, [&](int64_t begin, int64_t end) {
    for (int64_t group = begin; group < end; ++group) {
      int32_t* to = column + ptr[group];
      for (int64_t k = index.ptr[group]; k < index.ptr[group + 1]; ++k) {
        const int64_t first = index.col[k] * index.block_width, width = index.width(index.col[k]);
        for (int64_t j = 0; j < width; ++j) *to++ = static_cast<int32_t>(first + j);
      }
    }
  });
  return {ptr, {column, false}, index.start, groups, index.block_height};
}

template <typename T>
void conv2d_bsr(const Conv2dBsr& call, const TaskRunner& run) {
  using A = accumulator_t<T>;
  if (call.shape.batch == 0) return;
  const ConvWeights weights{call.index.nnz(), call.index.block_height};
  const ConvPlan plan(call.shape, ConvDirection::kForward, weights, kVectors<A>);
  const RowLists rows = block_row_lists(call.index, run);
  const PlacedRows<A> placed = place_rows(plan, rows, static_cast<const T*>(call.values), run);
  convolve<T>(
      {plan, static_cast<const T*>(call.x), placed.lists, static_cast<const T*>(call.bias), static_cast<T*>(call.y)},
      run);
}

// The tap lists of the input gradient: each input channel's single weights,
// block by block within a list.
template <typename T>
TapLists<accumulator_t<T>> block_column_lists(const ConvPlan& plan, const BsrIndex& index, const T* from,
                                              const TaskRunner& run) {
  using A = accumulator_t<T>;
  const int64_t channels = plan.out_channels, lists = plan.lists, kept = index.nnz();
  int32_t* offsets = scratch<int32_t>(Slot::kIndices, kept + channels * lists + 1);
  int32_t* ptr = offsets + kept;
  A* values = scratch<A>(Slot::kValues, kept);
  // Kept rows of every column of a block column.
  const auto rows_of = [&](int64_t block_col) {
    int64_t rows = 0;
    for (int64_t k = index.col_ptr[block_col]; k < index.col_ptr[block_col + 1]; ++k)
      rows += index.height(index.row[k]);
    return rows;
  };
  std::fill(ptr, ptr + channels * lists + 1, 0);
  for (int64_t block_col = 0; block_col < index.block_cols(); ++block_col) {
    const int64_t rows = rows_of(block_col), first = block_col * index.block_width;
    for (int64_t column = first; column < first + index.width(block_col); ++column) {
      ptr[column / plan.taps * lists + plan.list[column % plan.taps] + 1] += static_cast<int32_t>(rows);
    }
  }
  for (int64_t i = 0; i < channels * lists; ++i) ptr[i + 1] += ptr[i];
  run_stretches(run, 8.0 * kept, channels, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) {
      const int64_t first = c * plan.taps, last = first + plan.taps;
      int64_t i = 0;
      for (int64_t list = 0; list < lists; ++list) {
        const int64_t stop = std::find_if(plan.by_list + i, plan.by_list + plan.taps,
                                          [&](int32_t tap) { return plan.list[tap] != list; }) -
                             plan.by_list;
        int32_t next = ptr[c * lists + list];
        for (int64_t block_col = first / index.block_width; block_col * index.block_width < last; ++block_col) {
          const int64_t col = block_col * index.block_width;
          for (int64_t k = index.col_ptr[block_col]; k < index.col_ptr[block_col + 1]; ++k) {
            const int64_t row = index.row[k], pitch = index.run_length(row), height = index.height(row);
            const int64_t block = index.position(row, index.order[k]);
            for (int64_t t = i; t < stop; ++t) {
              const int64_t tap = plan.by_list[t], j = first + tap - col;
              if (j < 0 || j >= index.block_width) continue;
              for (int64_t r = 0; r < height; ++r, ++next) {
                const int64_t channel = row * index.block_height + r;
                offsets[next] = static_cast<int32_t>(channel * plan.channel_stride + plan.offset[tap]);
                values[next] = widen_one(from + block + r * pitch + j);
              }
            }
          }
        }
        i = stop;
      }
    }
  });
  return {ptr, offsets, nullptr, values, 1, lists};
}

template <typename T>
void conv2d_bsr_input_grad(const Conv2dBsrInputGrad& call, const TaskRunner& run) {
  using A = accumulator_t<T>;
  if (call.shape.batch == 0 || call.shape.size[0] == 0 || call.shape.size[1] == 0) return;
  const ConvPlan plan(call.shape, ConvDirection::kInputGrad, {call.index.nnz(), 1}, kVectors<A>);
  convolve<T>({plan, static_cast<const T*>(call.grad),
               block_column_lists(plan, call.index, static_cast<const T*>(call.values), run), nullptr,
               static_cast<T*>(call.grad_x)},
              run);
}

template <typename T>
void conv2d_bsr_weight_grad(const Conv2dBsrWeightGrad& call, const TaskRunner& run) {
  using A = accumulator_t<T>;
  const ConvWeights weights{call.index.nnz(), call.index.block_height};
  const ConvPlan plan(call.shape, ConvDirection::kForward, weights, kVectors<A>);
  const RowLists rows = block_row_lists(call.index, run);
  const PlacedRows<A> placed = place_rows<T>(plan, rows, nullptr, run);
  convolve_weight_grad<T>({plan, placed.lists, placed.order, static_cast<const T*>(call.x),
                           static_cast<const T*>(call.grad), static_cast<T*>(call.values)},
                          run);
}

}  // namespace
}  // namespace SNIPKERN_TIER
}  // namespace snipkern
