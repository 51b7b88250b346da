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

// The weights as lists of taps (see conv_plan.h). A group of `height` channels shares its lists.
template <typename A>
struct TapLists {
  const int32_t* ptr;      // [groups * lists + 1]: where each list of a group begins
  const int32_t* offsets;  // slab vectors from a position to the tap
  const int32_t* starts;   // [groups + 1]: values before a group; null where that is ptr[group * lists]
  const A* values;         // group by group, its channels one after the other; null for a weight gradient
  int64_t height, lists;

  int64_t groups(int64_t channels) const { return (channels + height - 1) / height; }
  int64_t values_before(int64_t group) const { return starts != nullptr ? starts[group] : ptr[group * lists]; }
  // Taps of each channel of a group.
  int64_t length(int64_t group) const { return ptr[(group + 1) * lists] - ptr[group * lists]; }
  // Position among the values of the first of a list, of the channel at `row` of the group.
  int64_t position(int64_t group, int64_t list, int64_t row) const {
    return values_before(group) + row * length(group) + ptr[group * lists + list] - ptr[group * lists];
  }
  TapList<A> list(int64_t group, int64_t number, int64_t row) const {
    const int64_t i = group * lists + number;
    return {offsets + ptr[i], ptr[i + 1] - ptr[i], values == nullptr ? nullptr : values + position(group, number, row),
            length(group)};
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
  const double products = lanes * kept * plan.patch_vectors();
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

// kStrip channels of a unit, from `row` of the group on; lanes[plan.depth]. Where channels adjoin the sums stay in the
// buffer.
template <typename T, int kStrip>
void convolve_strip(const Convolution<T>& call, const UnitLanes<kLanes<accumulator_t<T>>>* lanes, int64_t group,
                    int64_t row, const accumulator_t<T>* slab, accumulator_t<T>* buffer) {
  using A = accumulator_t<T>;
  constexpr int kN = kLanes<A>;
  const ConvPlan& plan = call.plan;
  const int64_t channel = group * call.lists.height + row, width = plan.out_vectors();
  const int64_t rows = plan.strip_rows(kStrip), pitch = rows * plan.phases[0] * width;
  A bias[kStrip] = {};
  if (call.bias != nullptr) {
    for (int s = 0; s < kStrip; ++s) bias[s] = widen_partial(call.bias + channel + s, 1)[0];
  }
  for (int64_t begin = 0; begin < plan.patch[0]; begin += rows) {
    const int64_t end = std::min(begin + rows, plan.patch[0]);
    if (plan.clipped) {
      for (int s = 0; s < kStrip; ++s) {
        for (int64_t i = 0; i < pitch; ++i) store(buffer + (s * pitch + i) * kN, broadcast<Vec<A>>(bias[s]));
      }
    }
    for (int64_t number = 0; number < plan.lists; ++number) {
      const TapList<A> list = call.lists.list(group, number, row);
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
        kTiles<A, kStrip>.sum[high][wide](list, x, plan.row_stride, plan.clipped ? nullptr : bias, tile);
      });
    }
    if (plan.adjoining_channels()) return;
    for (int s = 0; s < kStrip; ++s) {
      for (int64_t d = 0; d < plan.depth; ++d) {
        unpack_rows(plan, lanes[d], buffer + (s * pitch + d) * kN, channel + s, 1, begin, end, call.out);
      }
    }
  }
}

// Where the patches of a unit lie, and what they read, packed.
template <typename T>
struct PackedUnit {
  static constexpr int kN = kLanes<accumulator_t<T>>;
  UnitLanes<kN>* lanes;  // [plan.depth]
  accumulator_t<T>* slab;

  explicit PackedUnit(const ConvPlan& plan)
      : lanes(scratch<UnitLanes<kN>>(Slot::kPartial, plan.depth)),
        slab(scratch<accumulator_t<T>>(Slot::kPackedInput, plan.slab_vectors() * kN)) {}

  void pack(const ConvPlan& plan, const T* source, int64_t unit) {
    for (int64_t d = 0; d < plan.depth; ++d) {
      lanes[d] = UnitLanes<kN>(plan, unit * plan.depth + d);
      pack_source(plan, lanes[d], source, slab + d * kN);
    }
  }
};

// Channels of a small image that are moved at once.
inline int64_t gathered_channels(const ConvPlan& plan) {
  constexpr int64_t kElements = 64;
  return std::max<int64_t>(1, kElements / (plan.out_size[0] * plan.out_size[1]));
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
    buffer_vectors = std::max(buffer_vectors, strip * plan.strip_rows(strip));
  }
  buffer_vectors *= plan.phases[0] * plan.out_vectors();
  // Small images are written back a few channels at a time, so that vectors are whole.
  const int64_t pitch = plan.patch_vectors() * plan.phase_count();
  const int64_t batch = plan.adjoining_channels() ? gathered_channels(plan) : 0;
  buffer_vectors += batch * pitch;
  run(split_up.tasks * split_up.parts, [&](int64_t task) {
    const int64_t number = task / split_up.parts, part = task % split_up.parts;
    const int64_t first = part_group(lists, groups, split_up.parts, part);
    const int64_t last = part_group(lists, groups, split_up.parts, part + 1);
    PackedUnit<T> packed(plan);
    A* buffer = scratch<A>(Slot::kPackedGradient, buffer_vectors * kN);
    const int64_t stop = part_begin(plan.units, split_up.tasks, number + 1);
    for (int64_t unit = part_begin(plan.units, split_up.tasks, number); unit < stop; ++unit) {
      packed.pack(plan, call.source, unit);
      int64_t written = first * lists.height, computed = written;
      const auto write = [&] {
        for (int64_t d = 0; d < plan.depth; ++d) {
          unpack_rows(plan, packed.lanes[d], buffer + d * kN, written, computed - written, 0, plan.patch[0], call.out);
        }
        written = computed;
      };
      for (int64_t group = first; group < last; ++group) {
        const int64_t height = std::min(lists.height, plan.out_channels - group * lists.height);
        for_each_strip(height, [&](auto strip, int64_t row) {
          constexpr int kStrip = decltype(strip)::value;
          A* sums = buffer + (batch > 0 ? computed - written : 0) * pitch * kN;
          convolve_strip<T, kStrip>(call, packed.lanes, group, row, packed.slab, sums);
          computed += kStrip;
          if (batch > 0 && computed - written >= batch) write();
        });
      }
      if (batch > 0 && computed > written) write();
    }
  });
}

// Adds a strip's dot products over a rectangle of a unit's positions to sums: [strip][list.pitch].
template <typename A, int kStrip>
void dot_strip(const ConvPlan& plan, const ConvRect& rect, const TapList<A>& list, const A* slab, const A* grad,
               A* sums) {
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
// made them. order[k] is where sum k goes in `values`; null where that is k.
template <typename T>
void convolve_weight_grad(const ConvPlan& plan, const TapLists<accumulator_t<T>>& lists, const int32_t* order,
                          const T* x, const T* grad, T* values, const TaskRunner& run) {
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
  const int64_t positions = plan.patch_vectors(), widest = widest_strip(lists.height);
  const int64_t gathered = plan.clipped ? std::max(gathered_channels(plan), widest) : widest;
  A* sums = scratch<A>(Slot::kValues, split_up.tasks * kept);
  run(split_up.tasks * split_up.parts, [&](int64_t task) {
    const int64_t slice = task / split_up.parts, part = task % split_up.parts;
    const int64_t first = part_group(lists, groups, split_up.parts, part);
    const int64_t last = part_group(lists, groups, split_up.parts, part + 1);
    A* own = sums + slice * kept;
    std::fill(own + lists.values_before(first), own + lists.values_before(last), A{});
    PackedUnit<T> source(plan);
    A* packed = scratch<A>(Slot::kPackedGradient, gathered * positions * kN);
    const int64_t stop = part_begin(plan.units, split_up.tasks, slice + 1);
    for (int64_t unit = part_begin(plan.units, split_up.tasks, slice); unit < stop; ++unit) {
      source.pack(plan, x, unit);
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
                pack_gradient(plan, source.lanes[d], grad, c, together, to);
              }
            }
          }
          const A* dy = packed + (channel - packed_begin) * positions * kN;
          for (int64_t number = 0; number < plan.lists; ++number) {
            const TapList<A> list = lists.list(group, number, row);
            const ConvRect& rect = plan.rect[number];
            if (list.count == 0 || rect.begin[0] >= rect.end[0] || rect.begin[1] >= rect.end[1]) continue;
            dot_strip<A, kStrip>(plan, rect, list, source.slab, dy, own + lists.position(group, number, row));
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
      if (order == nullptr) {
        narrow_partial(values + k, sum, count);
      } else {
        T narrowed[kN];
        narrow(narrowed, sum);
        for (int i = 0; i < count; ++i) values[order[k + i]] = narrowed[i];
      }
    }
  });
}

// Row lists of the weight's view: a group's channels keep the same columns.
struct RowLists {
  const int32_t* ptr;      // [groups + 1]
  const int32_t* columns;  // [ptr[groups]], ascending within a group
  const int32_t* starts;   // [groups + 1]: values before a group; null where that is `ptr`
  int64_t groups, height;

  int64_t values_before(int64_t group) const { return starts != nullptr ? starts[group] : ptr[group]; }
};

// Runs body(begin, end) over stretches of [0, total), `work` multiply-adds together.
template <typename Body>
inline void run_stretches(const TaskRunner& run, double work, int64_t total, const Body& body) {
  const int64_t parts = std::max<int64_t>(1, std::min(total, task_count(work, 64)));
  run_if_worth(run, work, parts,
               [&](int64_t part) { body(part_begin(total, parts, part), part_begin(total, parts, part + 1)); });
}

template <typename A>
struct PlacedRows {
  TapLists<A> lists;
  const int32_t* order;  // position in the caller's values of each value; null where they are in the same order
};

// The tap lists of a forward walk, in kIndices and kValues. `values` may be null.
template <typename T>
PlacedRows<accumulator_t<T>> place_rows(const ConvPlan& plan, const RowLists& rows, const T* values,
                                        const TaskRunner& run) {
  using A = accumulator_t<T>;
  constexpr int kN = kLanes<A>;
  const int64_t columns = rows.ptr[rows.groups], kept = rows.values_before(rows.groups);
  if (!plan.clipped) {
    int32_t* offsets = scratch<int32_t>(Slot::kIndices, columns);
    run_stretches(run, 4.0 * columns, columns,
                  [&](int64_t begin, int64_t end) { plan.place(rows.columns, begin, end, offsets); });
    const A* wide = nullptr;
    if constexpr (std::is_same_v<T, A>) {
      wide = values;
    } else if (values != nullptr) {
      A* widened = scratch<A>(Slot::kValues, kept);
      run_stretches(run, 4.0 * kept, (kept + kN - 1) / kN, [&](int64_t begin, int64_t end) {
        for (int64_t k = begin * kN; k < std::min(kept, end * kN); k += kN) {
          const int count = static_cast<int>(std::min<int64_t>(kN, kept - k));
          narrow_partial(widened + k, widen_partial(values + k, count), count);
        }
      });
      wide = widened;
    }
    return {{rows.ptr, offsets, rows.starts, wide, rows.height, 1}, nullptr};
  }
  // Sorted by tap, each group's rows alike.
  const int64_t lists = plan.lists;
  int32_t* offsets = scratch<int32_t>(Slot::kIndices, columns + rows.groups * lists + 1 + kept);
  int32_t *ptr = offsets + columns, *order = ptr + rows.groups * lists + 1;
  A* sorted = values != nullptr ? scratch<A>(Slot::kValues, kept) : nullptr;
  ptr[rows.groups * lists] = static_cast<int32_t>(columns);
  run_stretches(run, 16.0 * kept, rows.groups, [&](int64_t begin, int64_t end) {
    for (int64_t group = begin; group < end; ++group) {
      const int64_t first = rows.ptr[group], length = rows.ptr[group + 1] - first;
      int32_t* next = ptr + group * lists;
      std::fill(next, next + lists, 0);
      plan.count_taps(rows.columns + first, length, next);
      for (int64_t tap = 0, at = first; tap < lists; ++tap) {
        const int64_t count = next[tap];
        next[tap] = static_cast<int32_t>(at);
        at += count;
      }
      const int64_t start = rows.values_before(group);
      // The first row's part of `order` gets the permutation; the other rows repeat it.
      plan.place_sorted(rows.columns + first, length, next, offsets, order + start - first);
      const int64_t height = length == 0 ? 0 : (rows.values_before(group + 1) - start) / length;
      for (int64_t r = height - 1; r >= 0; --r) {
        for (int64_t k = 0; k < length; ++k) {
          const int32_t from = static_cast<int32_t>(start + r * length + order[start + k]);
          if (sorted != nullptr) sorted[start + r * length + k] = widen_partial(values + from, 1)[0];
          if (r > 0) order[start + r * length + k] = from;
        }
      }
      for (int64_t k = 0; k < length; ++k) order[start + k] += static_cast<int32_t>(start);
      for (int64_t tap = lists - 1; tap > 0; --tap) next[tap] = next[tap - 1];
      next[0] = static_cast<int32_t>(first);
    }
  });
  return {{ptr, offsets, rows.starts, sorted, rows.height, lists}, order};
}

}  // namespace
}  // namespace SNIPKERN_TIER
}  // namespace snipkern
