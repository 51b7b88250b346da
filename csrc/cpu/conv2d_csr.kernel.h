// See conv2d_csr.h and conv_plan.h. Compiled once per ISA tier.

#include "cpu/conv_walk.kernel.h"

namespace snipkern {
namespace SNIPKERN_TIER {
namespace {

// Slab offsets of row lists: [nnz] in kIndices.
inline const int32_t* row_offsets(const ConvPlan& plan, const IndexList& index, int64_t nnz, const TaskRunner& run) {
  int32_t* offsets = scratch<int32_t>(Slot::kIndices, nnz);
  const int64_t parts = task_count(4.0 * nnz, 64);
  run(parts, [&](int64_t part) {
    plan.place(index, part_begin(nnz, parts, part), part_begin(nnz, parts, part + 1), offsets);
  });
  return offsets;
}

template <typename T>
void conv2d_csr(const Conv2dCsr& call, const TaskRunner& run) {
  using A = accumulator_t<T>;
  if (call.shape.batch == 0) return;
  const ConvPlan plan(call.shape, ConvDirection::kForward, SNIPKERN_VECTOR_BYTES, kTileLimit);
  const int64_t nnz = call.ptr[plan.out_channels];
  const T* values = static_cast<const T*>(call.values);
  TapLists<A> lists{call.ptr, row_offsets(plan, call.index, nnz, run), nullptr};
  if constexpr (std::is_same_v<T, A>) {
    lists.values = values;
  } else {
    A* wide = scratch<A>(Slot::kValues, nnz);
    for (int64_t k = 0; k < nnz; k += kLanes<A>) {
      const int count = static_cast<int>(std::min<int64_t>(kLanes<A>, nnz - k));
      narrow_partial(wide + k, widen_partial(values + k, count), count);
    }
    lists.values = wide;
  }
  convolve<T>({plan, call.shape.batch, static_cast<const T*>(call.x), lists, static_cast<const T*>(call.bias),
               static_cast<T*>(call.y), larger_than_cache<T>(plan, call.shape.batch)},
              run);
}

// The lists of the input gradient: an input channel's columns, sorted by the phase that they reach.
template <typename T>
TapLists<accumulator_t<T>> column_lists(const ConvPlan& plan, const Conv2dCsrInputGrad& call, const TaskRunner& run) {
  using A = accumulator_t<T>;
  const int64_t channels = plan.out_channels, phases = plan.phase_count();
  const int64_t nnz = call.ptr[channels * plan.taps];
  int32_t* offsets = scratch<int32_t>(Slot::kIndices, nnz + channels * phases + 1);
  int32_t* ptr = offsets + nnz;
  A* values = scratch<A>(Slot::kValues, nnz);
  const T* from = static_cast<const T*>(call.values);
  ptr[channels * phases] = static_cast<int32_t>(nnz);
  const int64_t parts = std::min(channels, task_count(8.0 * nnz, 64));
  run(parts, [&](int64_t part) {
    for (int64_t c = part_begin(channels, parts, part); c < part_begin(channels, parts, part + 1); ++c) {
      int32_t next = call.ptr[c * plan.taps];
      int64_t tap = 0;
      for (int64_t phase = 0; phase < phases; ++phase) {
        ptr[c * phases + phase] = next;
        for (; tap < plan.taps && plan.phase[plan.by_phase[tap]] == phase; ++tap) {
          const int64_t column = c * plan.taps + plan.by_phase[tap];
          for (int64_t k = call.ptr[column]; k < call.ptr[column + 1]; ++k, ++next) {
            offsets[next] = static_cast<int32_t>(call.index[k] * plan.channel_stride + plan.offset[plan.by_phase[tap]]);
            values[next] = widen_partial(from + call.order[k], 1)[0];
          }
        }
      }
    }
  });
  return {ptr, offsets, values};
}

template <typename T>
void conv2d_csr_input_grad(const Conv2dCsrInputGrad& call, const TaskRunner& run) {
  if (call.shape.batch == 0 || call.shape.size[0] == 0 || call.shape.size[1] == 0) return;
  const ConvPlan plan(call.shape, ConvDirection::kInputGrad, SNIPKERN_VECTOR_BYTES, kTileLimit);
  convolve<T>({plan, call.shape.batch, static_cast<const T*>(call.grad), column_lists<T>(plan, call, run), nullptr,
               static_cast<T*>(call.grad_x), larger_than_cache<T>(plan, call.shape.batch)},
              run);
}

// Adds one channel's dot products over a packed band to sums [list.count].
template <typename A>
void dot_channel(const ConvPlan& plan, const ConvBand& band, const TapList<A>& list, const A* slab, const A* grad,
                 A* sums) {
  constexpr int kN = kLanes<A>;
  constexpr int64_t kBlock = 16 * kN;
  alignas(64) A dots[kBlock * kN];
  const int64_t width = band.end[1] - band.begin[1];
  for (int64_t k = 0; k < list.count; k += kBlock) {
    const TapList<A> block{nullptr, list.offsets + k, std::min(kBlock, list.count - k)};
    std::fill(dots, dots + (block.count + kN - 1) / kN * kN * kN, A{});
    for_each_tile(plan, band.begin, band.end, [&](int64_t row, int64_t col, int64_t rows, int64_t cols) {
      const int64_t down = row - band.begin[0], across = col - band.begin[1];
      const Tile<const A> tile{grad + (down * width + across) * kN, width, 1};
      kTiles<A>.dot[rows][cols](block, slab + (down * plan.row_stride + across) * kN, plan.row_stride, tile, dots);
    });
    for (int64_t i = 0; i < block.count; i += kN) {
      const int count = static_cast<int>(std::min<int64_t>(kN, block.count - i));
      Vec<A> rows[kN];
      for (int j = 0; j < kN; ++j) rows[j] = load(dots + (i + j) * kN);
      narrow_partial(sums + k + i, widen_partial(sums + k + i, count) + sum_rows<A>(rows), count);
    }
  }
}

// Tasks cover slices of the batch and bands, each with sums of its own; these are added in order of
// the slices, whatever thread made them.
template <typename T>
void conv2d_csr_weight_grad(const Conv2dCsrWeightGrad& call, const TaskRunner& run) {
  using A = accumulator_t<T>;
  constexpr int kN = kLanes<A>;
  constexpr int64_t kMostSlices = 16, kMostSumBytes = 64 << 20;
  const ConvPlan plan(call.shape, ConvDirection::kForward, SNIPKERN_VECTOR_BYTES, kTileLimit);
  const int64_t nnz = call.ptr[plan.out_channels];
  T* values = static_cast<T*>(call.values);
  if (nnz == 0) return;
  if (call.shape.batch == 0) {
    std::memset(values, 0, nnz * sizeof(T));
    return;
  }
  const T *x = static_cast<const T*>(call.x), *grad = static_cast<const T*>(call.grad);
  const int64_t bytes = nnz * static_cast<int64_t>(sizeof(A));
  const int64_t most = std::max<int64_t>(1, std::min(kMostSlices, kMostSumBytes / bytes));
  const ConvTasks split_up = split<A>(plan, call.shape.batch, nnz, most);
  const int32_t* offsets = row_offsets(plan, call.index, nnz, run);
  A* sums = scratch<A>(Slot::kValues, split_up.tasks * nnz);
  run(split_up.tasks * split_up.parts, [&](int64_t task) {
    const int64_t slice = task / split_up.parts, part = task % split_up.parts;
    const int64_t first = part_channel(call.ptr, 1, plan.out_channels, split_up.parts, part);
    const int64_t last = part_channel(call.ptr, 1, plan.out_channels, split_up.parts, part + 1);
    const int64_t plane = plan.out_size[0] * plan.out_size[1];
    A* own = sums + slice * nnz;
    std::fill(own + call.ptr[first], own + call.ptr[last], A{});
    A* slab = scratch<A>(Slot::kPackedInput, plan.slab_vectors() * kN);
    A* packed = scratch<A>(Slot::kPackedGradient, plan.band[0] * plan.band[1] * kN);
    const int64_t stop = part_begin(split_up.units, split_up.tasks, slice + 1);
    for (int64_t unit = part_begin(split_up.units, split_up.tasks, slice); unit < stop; ++unit) {
      const int64_t sample = unit / plan.band_count() * kN;
      const int samples = static_cast<int>(std::min<int64_t>(kN, call.shape.batch - sample));
      const ConvBand band = plan.band_at(unit % plan.band_count());
      pack_band(plan, band, x, sample, samples, slab);
      for (int64_t channel = first; channel < last; ++channel) {
        const int64_t begin = call.ptr[channel];
        const TapList<A> list{nullptr, offsets + begin, call.ptr[channel + 1] - begin};
        if (list.count == 0) continue;
        const T* from = grad + (sample * plan.out_channels + channel) * plane + band.begin[0] * plan.out_size[1];
        pack_window(from + band.begin[1], plan.out_channels * plane, plan.out_size[1], samples,
                    band.end[0] - band.begin[0], band.end[1] - band.begin[1], packed);
        dot_channel<A>(plan, band, list, slab, packed, own + begin);
      }
    }
  });
  const int64_t parts = task_count(4.0 * split_up.tasks * nnz, 64), groups = (nnz + kN - 1) / kN;
  run(parts, [&](int64_t part) {
    const int64_t stop = std::min(nnz, part_begin(groups, parts, part + 1) * kN);
    for (int64_t k = part_begin(groups, parts, part) * kN; k < stop; k += kN) {
      const int count = static_cast<int>(std::min<int64_t>(kN, stop - k));
      Vec<A> sum{};
      for (int64_t slice = 0; slice < split_up.tasks; ++slice) sum += widen_partial(sums + slice * nnz + k, count);
      narrow_partial(values + k, sum, count);
    }
  });
}

}  // namespace
}  // namespace SNIPKERN_TIER
}  // namespace snipkern
