// The walk of the weight gradient. No include guard: compiled once per tier and
// kernel file.

#include "cpu/conv_walk.kernel.h"

namespace snipkern {
namespace SNIPKERN_TIER {
namespace {

// Adds a strip's dot products over a rectangle of a unit's positions to sums:
// [strip][list.pitch].
template <typename A, int kStrip>
SNIPKERN_NOINLINE void dot_strip(const ConvPlan& plan, const ConvRect& rect, const TapList<A>& list, const A* slab,
                                 const A* grad, A* sums) {
  constexpr int kN = kLanes<A>;
  constexpr int64_t kBlock = 16 * kN / kStrip;
  static_assert(kBlock % kN == 0);
  alignas(64) A dots[kBlock * kStrip * kN];
  const int64_t pitch = plan.patch_vectors(), width = plan.patch[1] * plan.depth;
  const ConvTile shape = plan.tile(kStrip, rect.end[0] - rect.begin[0], rect.end[1] - rect.begin[1]);
  for (int64_t k = 0; k < list.count; k += kBlock) {
    const TapList<A> block{list.offsets + k, std::min(kBlock, list.count - k), nullptr, 0};
    std::fill(dots, dots + (block.count + kN - 1) / kN * kN * kStrip * kN, A{});
    for_each_tile(shape, rect, [&](int64_t r, int64_t c, int64_t high, int64_t wide) {
      const Tile<const A> tile{grad + (r * width + c) * kN, width, 1, pitch};
      kDotTiles<A, kStrip>.at[high][wide](block, slab + (r * plan.row_stride + c) * kN, plan.row_stride, tile, dots);
    });
    for (int64_t i = 0; i < block.count; i += kN) {
      const int count = static_cast<int>(std::min<int64_t>(kN, block.count - i));
      SNIPKERN_UNROLL for (int s = 0; s < kStrip; ++s) {
        Vec<A> rows[kN];
        SNIPKERN_UNROLL for (int j = 0; j < kN; ++j) rows[j] = load(dots + ((i + j) * kStrip + s) * kN);
        A* to = sums + s * list.pitch + k + i;
        narrow_partial(to, widen_partial(to, count) + sum_rows<A>(rows), count);
      }
    }
  }
}

// Tasks cover slices of the units, each with sums of its own; these are added
// in order of the slices, whatever thread made them.
template <typename T>
void weight_grad_units(const ConvWeightGrad<T>& call, const TaskRunner& run) {
  using A = accumulator_t<T>;
  const ConvPlan& plan = call.plan;
  const TapLists<A>& lists = call.lists;
  T* const values = call.values;
  constexpr int kN = kLanes<A>;
  constexpr int64_t kMostSlices = 16, kMostSumBytes = 64 << 20;
  const int64_t groups = lists.groups(plan.out_channels), kept = lists.values_before(groups);
  if (kept == 0) return;
  if (plan.units == 0) {
    std::memset(values, 0, kept * sizeof(T));
    return;
  }
  const int64_t bytes = kept * static_cast<int64_t>(sizeof(A));
  const int64_t most = std::max<int64_t>(1, std::min(kMostSlices, kMostSumBytes / bytes));
  const ConvTasks split_up = split<A>(plan, groups, kept, most);
  const int64_t positions = plan.patch_vectors(), widest = widest_strip(lists.height);
  const int64_t gathered = plan.clipped ? std::max(gathered_channels(plan), widest) : widest;
  A* sums = scratch<A>(Slot::kValues, split_up.tasks * kept);
  const PackedSource<T> source(plan, call.x, split_up.parts > 1, run);
  run(split_up.tasks * split_up.parts, [&](int64_t task) {
    const int64_t slice = task / split_up.parts, part = task % split_up.parts;
    const int64_t first = part_group(lists, groups, split_up.parts, part);
    const int64_t last = part_group(lists, groups, split_up.parts, part + 1);
    A* own = sums + slice * kept;
    std::fill(own + lists.values_before(first), own + lists.values_before(last), A{});
    auto* lanes = scratch<UnitLanes<kN>>(Slot::kPartial, plan.depth);
    A* packed = scratch<A>(Slot::kPackedGradient, gathered * positions * kN);
    const int64_t stop = part_begin(plan.units, split_up.tasks, slice + 1);
    for (int64_t unit = part_begin(plan.units, split_up.tasks, slice); unit < stop; ++unit) {
      const A* slab = source.unit(unit, lanes);
      int64_t packed_begin = 0, packed_end = 0;  // channels of the gradient
      for (int64_t group = first; group < last; ++group) {
        const int64_t height = std::min(lists.height, plan.out_channels - group * lists.height);
        if (lists.length(group) == 0) continue;
        for_each_strip(height, [&](auto strip, int64_t row) {
          constexpr int kStrip = decltype(strip)::value;
          const int64_t channel = group * lists.height + row;
          if (channel + kStrip > packed_end) {
            packed_begin = channel;
            packed_end = std::min(channel + (plan.clipped ? gathered : kStrip), plan.out_channels);
            const int64_t together = plan.clipped ? packed_end - packed_begin : 1;
            for (int64_t c = packed_begin; c < packed_end; c += together) {
              for (int64_t d = 0; d < plan.depth; ++d) {
                A* to = packed + ((c - packed_begin) * positions + d) * kN;
                pack_gradient(plan, lanes[d], call.grad, c, together, to);
              }
            }
          }
          const A* dy = packed + (channel - packed_begin) * positions * kN;
          for (int64_t number = 0; number < plan.lists; ++number) {
            const TapList<A> list = lists.list(group, number, row);
            const ConvRect& rect = plan.rect[number];
            if (list.count == 0 || rect.begin[0] >= rect.end[0] || rect.begin[1] >= rect.end[1]) continue;
            dot_strip<A, kStrip>(plan, rect, list, slab, dy, own + lists.position(group, number, row));
          }
        });
      }
    }
  });
  const int64_t parts = task_count(4.0 * split_up.tasks * kept, 64), vectors = (kept + kN - 1) / kN;
  run(parts, [&](int64_t part) {
    const int64_t stop = std::min(kept, part_begin(vectors, parts, part + 1) * kN);
    for (int64_t k = part_begin(vectors, parts, part) * kN; k < stop; k += kN) {
      const int count = static_cast<int>(std::min<int64_t>(kN, stop - k));
      Vec<A> sum{};
      for (int64_t slice = 0; slice < split_up.tasks; ++slice) sum += widen_partial(sums + slice * kept + k, count);
      if (call.order == nullptr) {
        narrow_partial(values + k, sum, count);
      } else {
        T narrowed[kN];
        narrow(narrowed, sum);
        for (int i = 0; i < count; ++i) values[call.order[k + i]] = narrowed[i];
      }
    }
  });
}

}  // namespace

template <typename T>
void convolve_weight_grad(const ConvWeightGrad<T>& call, const TaskRunner& run) {
  weight_grad_units(call, run);
}

template void convolve_weight_grad(const ConvWeightGrad<float>&, const TaskRunner&);
template void convolve_weight_grad(const ConvWeightGrad<double>&, const TaskRunner&);
template void convolve_weight_grad(const ConvWeightGrad<Half>&, const TaskRunner&);
template void convolve_weight_grad(const ConvWeightGrad<BFloat16>&, const TaskRunner&);

}  // namespace SNIPKERN_TIER
}  // namespace snipkern
