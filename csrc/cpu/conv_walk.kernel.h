// The walk that forward and input gradient share, the one of the weight
// gradient, and how the work of all of them is cut into tasks. No include
// guard: compiled once per tier and kernel file.
//
// Scratch: what a call shares is in kIndices (offsets) and kValues; what a task
// fills is in kPackedInput (slab) and kPackedGradient (positions of one strip),
// of its thread.

#include "cpu/conv_lists.kernel.h"

namespace snipkern {
namespace SNIPKERN_TIER {
namespace {

// Packing or writing back an entry costs about as much as this many
// multiply-adds.
constexpr double kMoveCost = 8;

template <typename A>
constexpr ConvVectors kVectors{kLanes<A>, SNIPKERN_VECTOR_BYTES, kTileLimit};

// Units times parts of the groups, in `tasks` x `parts` tasks.
struct ConvTasks {
  int64_t tasks, parts;
};

// Depends on sizes only, so results do not depend on the thread count. Parts
// pack the same slab again each, so there are several only where units are few
// and the products outweigh the packing.
template <typename A>
ConvTasks split(const ConvPlan& plan, int64_t groups, int64_t kept, int64_t most) {
  constexpr int64_t kFewUnits = 16;
  ConvTasks result;
  const double lanes = static_cast<double>(plan.units) * kLanes<A>;
  const double products = lanes * kept * plan.patch_vectors();
  const double moves = kMoveCost * lanes * plan.slab_vectors();
  const int64_t wanted = task_count(products + moves, std::max(most, kFewUnits));
  result.tasks = std::min({plan.units, wanted, most});
  result.parts = 1;
  if (plan.units <= kFewUnits) {
    result.parts = std::max<int64_t>(1, std::min({groups, kFewUnits / result.tasks, wanted / result.tasks}));
  }
  return result;
}

// First group of a part, of nearly equal work: kept weights, and the moves of
// outputs.
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

// Calls body(constant, row) for strips of kMost, ..., 4, 2 and 1 of a group's
// `height` channels, from `row` of the group on. kMost is a power of two: 1
// where groups are single channels.
template <int kMost, typename Body>
inline void for_each_strip(int64_t height, const Body& body, int64_t row = 0) {
  for (; height - row >= kMost; row += kMost) body(std::integral_constant<int, kMost>{}, row);
  if constexpr (kMost > 1) {
    if (row < height) for_each_strip<kMost / 2>(height, body, row);
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

// kStrip channels of a unit, from `row` of the group on; lanes[plan.depth].
// Where channels adjoin the sums stay in the buffer.
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
    for (int s = 0; s < kStrip; ++s) bias[s] = widen_one(call.bias + channel + s);
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

// The source of a walk, packed: unit by unit by the task that needs it, or,
// where several tasks share each unit, all of it beforehand.
template <typename T>
class PackedSource {
 public:
  using A = accumulator_t<T>;
  static constexpr int kN = kLanes<A>;

  PackedSource(const ConvPlan& plan, const T* source, bool shared, const TaskRunner& run)
      : plan_(plan), source_(source) {
    if (!shared) return;
    shared_ = scratch<A>(Slot::kPackedInput, plan.units * slab_size());
    const int64_t channels = plan.source_channels, numbers = plan.units * plan.depth;
    const double work = kMoveCost * kN * static_cast<double>(plan.units * plan.slab_vectors());
    const int64_t parts = std::min(channels, (task_count(work, 64) + numbers - 1) / numbers);
    run_if_worth(run, work, numbers * parts, [&](int64_t task) {
      const int64_t number = task / parts, part = task % parts;
      A* slab = shared_ + number / plan.depth * slab_size() + number % plan.depth * kN;
      pack_source(plan, UnitLanes<kN>(plan, number), source, part_begin(channels, parts, part),
                  part_begin(channels, parts, part + 1), slab);
    });
  }

  // The slab of a unit; fills lanes[plan.depth].
  const A* unit(int64_t number, UnitLanes<kN>* lanes) const {
    A* own = shared_ != nullptr ? nullptr : scratch<A>(Slot::kPackedInput, slab_size());
    for (int64_t d = 0; d < plan_.depth; ++d) {
      lanes[d] = UnitLanes<kN>(plan_, number * plan_.depth + d);
      if (own != nullptr) pack_source(plan_, lanes[d], source_, 0, plan_.source_channels, own + d * kN);
    }
    return own != nullptr ? own : shared_ + number * slab_size();
  }

 private:
  int64_t slab_size() const { return plan_.slab_vectors() * kN; }

  const ConvPlan& plan_;
  const T* source_;
  A* shared_ = nullptr;
};

// Channels of a small image that are moved at once.
inline int64_t gathered_channels(const ConvPlan& plan) {
  constexpr int64_t kElements = 64;
  return std::max<int64_t>(1, kElements / (plan.out_size[0] * plan.out_size[1]));
}

template <typename T, int kMost>
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
        for_each_strip<kMost>(height, [&](auto strip, int64_t row) {
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
}  // namespace SNIPKERN_TIER
}  // namespace snipkern
