// The walk that forward and input gradient share. No include guard: compiled once per tier.

#include "cpu/conv_walk.kernel.h"

namespace snipkern {
namespace SNIPKERN_TIER {
namespace {

// Sums rows [begin, end) of positions of kStrip channels of a unit, from `row` of the group on.
template <typename A, int kStrip>
SNIPKERN_NOINLINE void sum_strip(const ConvPlan& plan, const TapLists<A>& lists, int64_t group, int64_t row,
                                 int64_t begin, int64_t end, const A* slab, const A* bias, A* buffer) {
  constexpr int kN = kLanes<A>;
  const int64_t width = plan.out_vectors(), pitch = plan.strip_rows(kStrip) * plan.phases[0] * width;
  if (plan.clipped) {
    for (int s = 0; s < kStrip; ++s) {
      for (int64_t i = 0; i < pitch; ++i) store(buffer + (s * pitch + i) * kN, broadcast<Vec<A>>(bias[s]));
    }
  }
  for (int64_t number = 0; number < plan.lists; ++number) {
    const TapList<A> list = lists.list(group, number, row);
    if (plan.clipped && list.count == 0) continue;
    ConvRect rect = plan.rect[number];
    rect.begin[0] = std::max(rect.begin[0], begin);
    rect.end[0] = std::min(rect.end[0], end);
    if (rect.begin[0] >= rect.end[0] || rect.begin[1] >= rect.end[1]) continue;
    const int64_t down = plan.phase[number] / plan.phases[1], across = plan.phase[number] % plan.phases[1];
    const ConvTile shape = plan.tile(kStrip, rect.end[0] - rect.begin[0], rect.end[1] - rect.begin[1]);
    for_each_tile(shape, rect, [&](int64_t r, int64_t c, int64_t high, int64_t wide) {
      const int64_t at = ((r - begin) * plan.phases[0] + down) * width + c * plan.phases[1] + across;
      const Tile<A> tile{buffer + at * kN, plan.phases[0] * width, plan.phases[1], pitch};
      const A* x = slab + (r * plan.row_stride + c) * kN;
      kSumTiles<A, kStrip>.at[high][wide](list, x, plan.row_stride, plan.clipped ? nullptr : bias, tile);
    });
  }
}

// kStrip channels of a unit, from `row` of the group on; lanes[plan.depth]. Where channels adjoin the sums stay in the
// buffer.
template <typename T, int kStrip>
void convolve_strip(const Convolution<T>& call, const UnitLanes<kLanes<accumulator_t<T>>>* lanes, int64_t group,
                    int64_t row, const accumulator_t<T>* slab, accumulator_t<T>* buffer) {
  using A = accumulator_t<T>;
  const ConvPlan& plan = call.plan;
  const int64_t channel = group * call.lists.height + row, rows = plan.strip_rows(kStrip);
  const int64_t pitch = rows * plan.phases[0] * plan.out_vectors();
  A bias[kStrip] = {};
  if (call.bias != nullptr) {
    SNIPKERN_UNROLL for (int s = 0; s < kStrip; ++s) bias[s] = widen_one(call.bias + channel + s);
  }
  for (int64_t begin = 0; begin < plan.patch[0]; begin += rows) {
    const int64_t end = std::min(begin + rows, plan.patch[0]);
    sum_strip<A, kStrip>(plan, call.lists, group, row, begin, end, slab, bias, buffer);
    if (plan.adjoining_channels()) return;
    for (int s = 0; s < kStrip; ++s) {
      for (int64_t d = 0; d < plan.depth; ++d) {
        unpack_rows(plan, lanes[d], buffer + (s * pitch + d) * kLanes<A>, channel + s, 1, begin, end, call.out);
      }
    }
  }
}

template <typename T>
void convolve_units(const Convolution<T>& call, const TaskRunner& run) {
  using A = accumulator_t<T>;
  constexpr int kN = kLanes<A>;
  const ConvPlan& plan = call.plan;
  const TapLists<A>& lists = call.lists;
  const int64_t groups = lists.groups(plan.out_channels);
  const ConvTasks split_up = split<A>(plan, groups, lists.values_before(groups), 256);
  int64_t buffer_vectors = 0;
  for (int64_t strip = 1; strip <= widest_strip(lists.height); strip *= 2) {
    buffer_vectors = std::max(buffer_vectors, strip * plan.strip_rows(strip));
  }
  buffer_vectors *= plan.phases[0] * plan.out_vectors();
  // Small images are written back a few channels at a time, so that vectors are
  // whole.
  const int64_t pitch = plan.patch[0] * plan.phases[0] * plan.out_vectors();
  const int64_t batch = plan.adjoining_channels() ? gathered_channels(plan) : 0;
  buffer_vectors += batch * pitch;
  const PackedSource<T> source(plan, call.source, split_up.parts > 1, run);
  run(split_up.tasks * split_up.parts, [&](int64_t task) {
    const int64_t number = task / split_up.parts, part = task % split_up.parts;
    const int64_t first = part_group(lists, groups, split_up.parts, part);
    const int64_t last = part_group(lists, groups, split_up.parts, part + 1);
    auto* lanes = scratch<UnitLanes<kN>>(Slot::kPartial, plan.depth);
    A* buffer = scratch<A>(Slot::kPackedGradient, buffer_vectors * kN);
    const int64_t stop = part_begin(plan.units, split_up.tasks, number + 1);
    for (int64_t unit = part_begin(plan.units, split_up.tasks, number); unit < stop; ++unit) {
      const A* slab = source.unit(unit, lanes);
      int64_t written = first * lists.height, computed = written;
      const auto write = [&] {
        for (int64_t d = 0; d < plan.depth; ++d) {
          unpack_rows(plan, lanes[d], buffer + d * kN, written, computed - written, 0, plan.patch[0], call.out);
        }
        written = computed;
      };
      for (int64_t group = first; group < last; ++group) {
        const int64_t height = std::min(lists.height, plan.out_channels - group * lists.height);
        for_each_strip(height, [&](auto strip, int64_t row) {
          constexpr int kStrip = decltype(strip)::value;
          A* sums = buffer + (batch > 0 ? computed - written : 0) * pitch * kN;
          convolve_strip<T, kStrip>(call, lanes, group, row, slab, sums);
          computed += kStrip;
          if (batch > 0 && computed - written >= batch) write();
        });
      }
      if (batch > 0 && computed > written) write();
    }
  });
}

}  // namespace

template <typename T>
void convolve(const Convolution<T>& call, const TaskRunner& run) {
  convolve_units(call, run);
}

template void convolve(const Convolution<float>&, const TaskRunner&);
template void convolve(const Convolution<double>&, const TaskRunner&);
template void convolve(const Convolution<Half>&, const TaskRunner&);
template void convolve(const Convolution<BFloat16>&, const TaskRunner&);

}  // namespace SNIPKERN_TIER
}  // namespace snipkern
