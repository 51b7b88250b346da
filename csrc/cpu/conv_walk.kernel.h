// The walk that forward and input gradient share, and how the work of all three ops is cut into tasks.
// No include guard: compiled once per tier and kernel file.
//
// Scratch: what a call shares is in kIndices (offsets) and kValues; what a task fills is in
// kPackedInput (slab), kPackedGradient (positions of one channel) and kPartial (map), of its thread.

#include "cpu/conv_tiles.kernel.h"

namespace snipkern {
namespace SNIPKERN_TIER {
namespace {

// Packing or writing back an entry costs about as much as this many multiply-adds.
constexpr double kMoveCost = 8;

// Units (a vector of samples, a band) times parts of the output channels, in `tasks` x `parts` tasks.
struct ConvTasks {
  int64_t units, tasks, parts;
};

// Depends on sizes only, so results do not depend on the thread count. Parts pack the same slab again
// each, so there are several only where units are few and the products outweigh the packing.
template <typename A>
ConvTasks split(const ConvPlan& plan, int64_t batch, int64_t nnz, int64_t most) {
  constexpr int64_t kFewUnits = 16;
  ConvTasks result;
  result.units = (batch + kLanes<A> - 1) / kLanes<A> * plan.band_count();
  const double samples = static_cast<double>(batch);
  const double products = samples * nnz * plan.positions[0] * plan.positions[1];
  const double moves = kMoveCost * samples * plan.band_count() * plan.slab_vectors();
  const int64_t wanted = task_count(products + moves, std::max(most, kFewUnits));
  result.tasks = std::min({result.units, wanted, most});
  const int64_t limit =
      std::min({plan.out_channels, kFewUnits / result.tasks, static_cast<int64_t>(products / moves / 4)});
  result.parts = std::max<int64_t>(1, std::min(limit, wanted / result.tasks));
  return result;
}

// First output channel of a part, of nearly equal work: kept weights, and the moves of an output.
// Channel c has the lists ptr[c * lists], ..., ptr[c * lists + lists - 1].
inline int64_t part_channel(const int32_t* ptr, int64_t lists, int64_t channels, int64_t parts, int64_t part) {
  if (part == parts) return channels;
  const auto cost = [&](int64_t channel) { return ptr[channel * lists] + static_cast<int64_t>(kMoveCost) * channel; };
  const int64_t target = part_begin(cost(channels), parts, part);
  int64_t low = 0, high = channels;
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

// The weight lists of every output channel and phase: list channel * phases + phase.
template <typename A>
struct TapLists {
  const int32_t *ptr, *offsets;
  const A* values;
  TapList<A> operator[](int64_t i) const { return {values + ptr[i], offsets + ptr[i], ptr[i + 1] - ptr[i]}; }
};

template <typename T>
struct Convolution {
  const ConvPlan& plan;
  int64_t batch;
  const T* source;
  TapLists<accumulator_t<T>> lists;
  const T* bias;
  T* out;
  bool past_cache;  // the output would evict more than it leaves in the cache
};

template <typename T>
bool larger_than_cache(const ConvPlan& plan, int64_t batch) {
  constexpr int64_t kCacheBytes = 4 << 20;
  const int64_t elements = batch * plan.out_channels * plan.out_size[0] * plan.out_size[1];
  return elements * static_cast<int64_t>(sizeof(T)) > kCacheBytes;
}

// One output channel at rows [begin[0], end[0]) of a packed band.
template <typename T>
void convolve_strip(const Convolution<T>& call, const ConvBand& band, int64_t sample, int samples, int64_t channel,
                    const int64_t (&begin)[2], const int64_t (&end)[2], const accumulator_t<T>* slab,
                    accumulator_t<T>* buffer) {
  using A = accumulator_t<T>;
  constexpr int kN = kLanes<A>;
  const ConvPlan& plan = call.plan;
  const A bias = call.bias != nullptr ? widen_partial(call.bias + channel, 1)[0] : A{};
  const int64_t first[2] = {begin[0] * plan.phases[0], begin[1] * plan.phases[1]};
  const int64_t height = std::min(end[0] * plan.phases[0], plan.out_size[0]) - first[0];
  const int64_t width = std::min(end[1] * plan.phases[1], plan.out_size[1]) - first[1];
  const int64_t plane = plan.out_size[0] * plan.out_size[1];
  T* out = call.out + (sample * plan.out_channels + channel) * plane + first[0] * plan.out_size[1] + first[1];
  for (int64_t phase = 0; phase < plan.phase_count(); ++phase) {
    const int64_t down = phase / plan.phases[1], across = phase % plan.phases[1];
    const int64_t phase_end[2] = {plan.phase_end(0, down, end[0]), plan.phase_end(1, across, end[1])};
    const TapList<A> list = call.lists[channel * plan.phase_count() + phase];
    for_each_tile(plan, begin, phase_end, [&](int64_t row, int64_t col, int64_t rows, int64_t cols) {
      const A* x = slab + ((row - band.begin[0]) * plan.row_stride + col - band.begin[1]) * kN;
      const int64_t at = (row * plan.phases[0] + down - first[0]) * width + col * plan.phases[1] + across - first[1];
      const Tile<A> tile{buffer + at * kN, plan.phases[0] * width, plan.phases[1]};
      kTiles<A>.sum[rows][cols](list, x, plan.row_stride, bias, tile);
    });
  }
  unpack_window(buffer, plan.out_channels * plane, plan.out_size[1], samples, height, width, call.past_cache, out);
}

template <typename T>
void convolve(const Convolution<T>& call, const TaskRunner& run) {
  using A = accumulator_t<T>;
  constexpr int kN = kLanes<A>;
  const ConvPlan& plan = call.plan;
  const int64_t lists = plan.phase_count();
  const ConvTasks split_up = split<A>(plan, call.batch, call.lists.ptr[plan.out_channels * lists], 256);
  run(split_up.tasks * split_up.parts, [&](int64_t task) {
    const int64_t number = task / split_up.parts, part = task % split_up.parts;
    const int64_t first = part_channel(call.lists.ptr, lists, plan.out_channels, split_up.parts, part);
    const int64_t last = part_channel(call.lists.ptr, lists, plan.out_channels, split_up.parts, part + 1);
    A* slab = scratch<A>(Slot::kPackedInput, plan.slab_vectors() * kN);
    A* buffer = scratch<A>(Slot::kPackedGradient, plan.strip_vectors() * kN);
    const int64_t stop = part_begin(split_up.units, split_up.tasks, number + 1);
    for (int64_t unit = part_begin(split_up.units, split_up.tasks, number); unit < stop; ++unit) {
      const int64_t sample = unit / plan.band_count() * kN;
      const int samples = static_cast<int>(std::min<int64_t>(kN, call.batch - sample));
      const ConvBand band = plan.band_at(unit % plan.band_count());
      pack_band(plan, band, call.source, sample, samples, slab);
      for (int64_t row = band.begin[0]; row < band.end[0]; row += plan.strip) {
        const int64_t begin[2] = {row, band.begin[1]};
        const int64_t end[2] = {std::min(row + plan.strip, band.end[0]), band.end[1]};
        for (int64_t channel = first; channel < last; ++channel) {
          convolve_strip(call, band, sample, samples, channel, begin, end, slab, buffer);
        }
      }
    }
    finish_stores();
  });
}

}  // namespace
}  // namespace SNIPKERN_TIER
}  // namespace snipkern
