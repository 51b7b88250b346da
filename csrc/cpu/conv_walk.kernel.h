// The walk that forward and input gradient share, the one of the weight gradient, and how the work of all of them is cut
// into tasks. No include guard: compiled once per tier and kernel file.
//
// Scratch: what a call shares is in kIndices (offsets) and kValues; what a task fills is in kPackedInput (slab) and
// kPackedGradient (positions of one strip), of its thread.

#include "cpu/conv_tiles.kernel.h"

namespace snipkern {
namespace SNIPKERN_TIER {
namespace {

// Packing or writing back an entry costs about as much as this many multiply-adds.
constexpr double kMoveCost = 8;

template <typename A>
constexpr ConvVectors kVectors{kLanes<A>, SNIPKERN_VECTOR_BYTES, kTileLimit};

// The weights as lists of taps. A group of `height` channels shares its lists, one for each phase.
template <typename A>
struct TapLists {
  const int32_t* ptr;      // [groups * phases + 1]: where the list of a group and phase begins
  const int32_t* offsets;  // slab vectors from a position to the tap
  const int32_t* starts;   // [groups + 1]: values before a group, with one phase; null where that is `ptr`
  const A* values;         // null for a weight gradient
  int64_t height, phases;

  int64_t groups(int64_t channels) const { return (channels + height - 1) / height; }
  int64_t values_before(int64_t group) const { return starts != nullptr ? starts[group] : ptr[group * phases]; }
  // Of the channels from `row` of the group on.
  TapList<A> list(int64_t group, int64_t phase, int64_t row) const {
    const int64_t i = group * phases + phase, count = ptr[i + 1] - ptr[i];
    const int64_t first = (starts != nullptr ? starts[group] : ptr[i]) + row * count;
    return {offsets + ptr[i], count, values == nullptr ? nullptr : values + first, count};
  }
};

// Units times parts of the groups, in `tasks` x `parts` tasks.
struct ConvTasks {
  int64_t tasks, parts;
};

// Depends on sizes only, so results do not depend on the thread count. Parts pack the same slab again each, so there are
// several only where units are few and the products outweigh the packing.
template <typename A>
ConvTasks split(const ConvPlan& plan, int64_t groups, int64_t kept, int64_t most) {
  constexpr int64_t kFewUnits = 16;
  ConvTasks result;
  const double lanes = static_cast<double>(plan.units) * kLanes<A>;
  const double products = lanes * kept * plan.patch[0] * plan.patch[1];
  const double moves = kMoveCost * lanes * plan.slab_vectors();
  const int64_t wanted = task_count(products + moves, std::max(most, kFewUnits));
  result.tasks = std::min({plan.units, wanted, most});
  const int64_t limit = std::min({groups, kFewUnits / result.tasks, static_cast<int64_t>(products / moves / 4)});
  result.parts = std::max<int64_t>(1, std::min(limit, wanted / result.tasks));
  return result;
}

// First group of a part, of nearly equal work: kept weights, and the moves of outputs.
template <typename A>
int64_t part_group(const TapLists<A>& lists, int64_t groups, int64_t parts, int64_t part) {
  if (part == parts) return groups;
  const int64_t move = static_cast<int64_t>(kMoveCost) * lists.height;
  const auto cost = [&](int64_t group) { return lists.values_before(group) + move * group; };
  const int64_t target = part_begin(cost(groups), parts, part);
  int64_t low = 0, high = groups;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (cost(middle) < target) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

// Calls body(constant, row) for strips of 8, 4, 2 and 1 of a group's `height` channels, from `row` of the group on.
template <typename Body>
inline void for_each_strip(int64_t height, const Body& body) {
  for (int64_t row = 0; row < height;) {
    const int64_t left = height - row;
    if (kStripLimit >= 8 && left >= 8) {
      body(std::integral_constant<int, kStripLimit>{}, row);
      row += 8;
    } else if (left >= 4) {
      body(std::integral_constant<int, 4>{}, row);
      row += 4;
    } else if (left >= 2) {
      body(std::integral_constant<int, 2>{}, row);
      row += 2;
    } else {
      body(std::integral_constant<int, 1>{}, row);
      row += 1;
    }
  }
}

// The most channels of a strip of groups of `height`.
inline int64_t widest_strip(int64_t height) {
  int64_t width = 1;
  while (width * 2 <= std::min<int64_t>(height, kStripLimit)) width *= 2;
  return width;
}

template <typename T>
struct Convolution {
  const ConvPlan& plan;
  const T* source;
  TapLists<accumulator_t<T>> lists;
  const T* bias;
  T* out;
};

// kStrip channels of a unit, from `row` of the group on.
template <typename T, int kStrip>
void convolve_strip(const Convolution<T>& call, const UnitLanes<kLanes<accumulator_t<T>>>& lanes, int64_t group,
                    int64_t row, const accumulator_t<T>* slab, accumulator_t<T>* buffer) {
  using A = accumulator_t<T>;
  constexpr int kN = kLanes<A>;
  const ConvPlan& plan = call.plan;
  const int64_t channel = group * call.lists.height + row, width = plan.out_width();
  const ConvTile shape = plan.tile(kStrip);
  const int64_t rows = plan.strip_rows(shape), pitch = rows * plan.phases[0] * width;
  A bias[kStrip] = {};
  if (call.bias != nullptr) {
    for (int s = 0; s < kStrip; ++s) bias[s] = widen_partial(call.bias + channel + s, 1)[0];
  }
  for (int64_t begin = 0; begin < plan.patch[0]; begin += rows) {
    const int64_t end = std::min(begin + rows, plan.patch[0]);
    for (int64_t phase = 0; phase < plan.phase_count(); ++phase) {
      const int64_t down = phase / plan.phases[1], across = phase % plan.phases[1];
      const TapList<A> list = call.lists.list(group, phase, row);
      for_each_tile(shape, begin, end, plan.phase_cols(across), [&](int64_t r, int64_t c, int64_t high, int64_t wide) {
        const int64_t at = ((r - begin) * plan.phases[0] + down) * width + c * plan.phases[1] + across;
        const Tile<A> tile{buffer + at * kN, plan.phases[0] * width, plan.phases[1], pitch};
        const A* x = slab + (r * plan.row_stride + c) * kN;
        kTiles<A, kStrip>.sum[high][wide](list, x, plan.row_stride, bias, tile);
      });
    }
    for (int s = 0; s < kStrip; ++s) {
      unpack_rows(plan, lanes, buffer + s * pitch * kN, channel + s, begin, end, call.out);
    }
  }
}

template <typename T>
void convolve(const Convolution<T>& call, const TaskRunner& run) {
  using A = accumulator_t<T>;
  constexpr int kN = kLanes<A>;
  const ConvPlan& plan = call.plan;
  const TapLists<A>& lists = call.lists;
  const int64_t groups = lists.groups(plan.out_channels);
  const ConvTasks split_up = split<A>(plan, groups, lists.values_before(groups), 256);
  int64_t buffer_vectors = 0;
  for (int64_t strip = 1; strip <= widest_strip(lists.height); strip *= 2) {
    buffer_vectors = std::max(buffer_vectors, strip * plan.strip_rows(plan.tile(strip)));
  }
  buffer_vectors *= plan.phases[0] * plan.out_width();
  run(split_up.tasks * split_up.parts, [&](int64_t task) {
    const int64_t number = task / split_up.parts, part = task % split_up.parts;
    const int64_t first = part_group(lists, groups, split_up.parts, part);
    const int64_t last = part_group(lists, groups, split_up.parts, part + 1);
    A* slab = scratch<A>(Slot::kPackedInput, plan.slab_vectors() * kN);
    A* buffer = scratch<A>(Slot::kPackedGradient, buffer_vectors * kN);
    const int64_t stop = part_begin(plan.units, split_up.tasks, number + 1);
    for (int64_t unit = part_begin(plan.units, split_up.tasks, number); unit < stop; ++unit) {
      const UnitLanes<kN> lanes(plan, unit);
      pack_source(plan, lanes, call.source, slab);
      for (int64_t group = first; group < last; ++group) {
        const int64_t height = std::min(lists.height, plan.out_channels - group * lists.height);
        for_each_strip(height, [&](auto strip, int64_t row) {
          convolve_strip<T, decltype(strip)::value>(call, lanes, group, row, slab, buffer);
        });
      }
    }
  });
}

// Adds a strip's dot products over a unit to sums: [strip][list.pitch].
template <typename A, int kStrip>
void dot_strip(const ConvPlan& plan, const TapList<A>& list, const A* slab, const A* grad, A* sums) {
  constexpr int kN = kLanes<A>;
  constexpr int64_t kBlock = 16 * kN / kStrip;
  static_assert(kBlock % kN == 0);
  alignas(64) A dots[kBlock * kStrip * kN];
  const int64_t pitch = plan.patch[0] * plan.patch[1];
  const ConvTile shape = plan.tile(kStrip);
  for (int64_t k = 0; k < list.count; k += kBlock) {
    const TapList<A> block{list.offsets + k, std::min(kBlock, list.count - k), nullptr, 0};
    std::fill(dots, dots + (block.count + kN - 1) / kN * kN * kStrip * kN, A{});
    for_each_tile(shape, 0, plan.patch[0], plan.patch[1], [&](int64_t r, int64_t c, int64_t high, int64_t wide) {
      const Tile<const A> tile{grad + (r * plan.patch[1] + c) * kN, plan.patch[1], 1, pitch};
      kTiles<A, kStrip>.dot[high][wide](block, slab + (r * plan.row_stride + c) * kN, plan.row_stride, tile, dots);
    });
    for (int64_t i = 0; i < block.count; i += kN) {
      const int count = static_cast<int>(std::min<int64_t>(kN, block.count - i));
      for (int s = 0; s < kStrip; ++s) {
        Vec<A> rows[kN];
        for (int j = 0; j < kN; ++j) rows[j] = load(dots + ((i + j) * kStrip + s) * kN);
        A* to = sums + s * list.pitch + k + i;
        narrow_partial(to, widen_partial(to, count) + sum_rows<A>(rows), count);
      }
    }
  }
}

// Tasks cover slices of the units, each with sums of its own; these are added in order of the slices, whatever thread
// made them.
template <typename T>
void convolve_weight_grad(const ConvPlan& plan, const TapLists<accumulator_t<T>>& lists, const T* x, const T* grad,
                          T* values, const TaskRunner& run) {
  using A = accumulator_t<T>;
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
  const int64_t positions = plan.patch[0] * plan.patch[1];
  A* sums = scratch<A>(Slot::kValues, split_up.tasks * kept);
  run(split_up.tasks * split_up.parts, [&](int64_t task) {
    const int64_t slice = task / split_up.parts, part = task % split_up.parts;
    const int64_t first = part_group(lists, groups, split_up.parts, part);
    const int64_t last = part_group(lists, groups, split_up.parts, part + 1);
    A* own = sums + slice * kept;
    std::fill(own + lists.values_before(first), own + lists.values_before(last), A{});
    A* slab = scratch<A>(Slot::kPackedInput, plan.slab_vectors() * kN);
    A* packed = scratch<A>(Slot::kPackedGradient, widest_strip(lists.height) * positions * kN);
    const int64_t stop = part_begin(plan.units, split_up.tasks, slice + 1);
    for (int64_t unit = part_begin(plan.units, split_up.tasks, slice); unit < stop; ++unit) {
      const UnitLanes<kN> lanes(plan, unit);
      pack_source(plan, lanes, x, slab);
      for (int64_t group = first; group < last; ++group) {
        const int64_t height = std::min(lists.height, plan.out_channels - group * lists.height);
        if (lists.list(group, 0, 0).count == 0) continue;
        for_each_strip(height, [&](auto strip, int64_t row) {
          constexpr int kStrip = decltype(strip)::value;
          const TapList<A> list = lists.list(group, 0, row);
          for (int s = 0; s < kStrip; ++s) {
            pack_gradient(plan, lanes, grad, group * lists.height + row + s, packed + s * positions * kN);
          }
          dot_strip<A, kStrip>(plan, list, slab, packed, own + lists.values_before(group) + row * list.count);
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
      narrow_partial(values + k, sum, count);
    }
  });
}

// The values in the type of sums: the caller's own array where it is that already.
template <typename T>
const accumulator_t<T>* widened(const T* values, int64_t count, const TaskRunner& run) {
  using A = accumulator_t<T>;
  constexpr int kN = kLanes<A>;
  if constexpr (std::is_same_v<T, A>) {
    return values;
  } else {
    A* wide = scratch<A>(Slot::kValues, count);
    const int64_t parts = task_count(4.0 * count, 64), vectors = (count + kN - 1) / kN;
    run(parts, [&](int64_t part) {
      const int64_t stop = std::min(count, part_begin(vectors, parts, part + 1) * kN);
      for (int64_t k = part_begin(vectors, parts, part) * kN; k < stop; k += kN) {
        const int some = static_cast<int>(std::min<int64_t>(kN, stop - k));
        narrow_partial(wide + k, widen_partial(values + k, some), some);
      }
    });
    return wide;
  }
}

// Slab offsets of `count` columns of the weight's view, in kIndices.
inline const int32_t* placed(const ConvPlan& plan, const int32_t* columns, int64_t count, const TaskRunner& run) {
  int32_t* offsets = scratch<int32_t>(Slot::kIndices, count);
  const int64_t parts = task_count(4.0 * count, 64);
  run(parts, [&](int64_t part) {
    plan.place(columns, part_begin(count, parts, part), part_begin(count, parts, part + 1), offsets);
  });
  return offsets;
}

}  // namespace
}  // namespace SNIPKERN_TIER
}  // namespace snipkern
