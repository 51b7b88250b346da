// What all walks share: how their work is cut into tasks, strips of channels, the packed source. No include guard:
// compiled once per tier and kernel file.
//
// Scratch: what a call shares is in kIndices (offsets) and kValues; what a task
// fills is in kPackedInput (slab) and kPackedGradient (positions of one strip),
// of its thread.

#include "cpu/conv_tiles.kernel.h"

namespace snipkern {
namespace SNIPKERN_TIER {
namespace {

// Packing or writing back an entry costs about as much as this many
// multiply-adds.
constexpr double kMoveCost = 8;

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
// `height` channels, from `row` of the group on. kMost is a power of two.
template <int kMost = kStripLimit, typename Body>
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

}  // namespace
}  // namespace SNIPKERN_TIER
}  // namespace snipkern
