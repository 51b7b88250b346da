// Images to slabs and back: a slab entry is a vector of one element of each
// patch of a unit (see conv_plan.h). No include guard: compiled once per tier
// and kernel file.

#include "cpu/conv_lists.kernel.h"

namespace snipkern {
namespace SNIPKERN_TIER {
namespace {

// Where the patches of one vector of a unit lie.
template <int kN>
struct UnitLanes {
  int64_t source[kN];               // first entry of its region, of channel 0; before the
                                    // image where that is padding
  int64_t low[2][kN], high[2][kN];  // entries of the region that exist
  int64_t out[kN];                  // first output entry, of channel 0
  int64_t rows[kN], cols[kN];       // output entries that exist

  SNIPKERN_NOINLINE UnitLanes(const ConvPlan& plan, int64_t number) {
    const int64_t source_plane = plan.source_size[0] * plan.source_size[1];
    const int64_t out_plane = plan.out_size[0] * plan.out_size[1];
    for (int lane = 0; lane < kN; ++lane) {
      const ConvPatch patch = plan.patch_at(number, lane);
      const bool used = patch.end[0] > patch.begin[0];
      int64_t begin[2], first[2], count[2];
      for (int axis = 0; axis < 2; ++axis) {
        begin[axis] = plan.region_begin[axis] + patch.begin[axis] * plan.step[axis];
        low[axis][lane] = std::max<int64_t>(0, -begin[axis]);
        high[axis][lane] = used ? std::min(plan.region[axis], plan.source_size[axis] - begin[axis]) : 0;
        first[axis] = patch.begin[axis] * plan.phases[axis];
        count[axis] = used ? std::min(plan.patch[axis] * plan.phases[axis], plan.out_size[axis] - first[axis]) : 0;
      }
      source[lane] = patch.sample * plan.source_channels * source_plane + begin[0] * plan.source_size[1] + begin[1];
      out[lane] = patch.sample * plan.out_channels * out_plane + first[0] * plan.out_size[1] + first[1];
      rows[lane] = count[0];
      cols[lane] = count[1];
    }
  }
};

// Runs of neighbouring elements: lane i has the elements [low[i], high[i]) of a
// run, which begins at from[i].
template <typename T, int kN>
struct LaneRuns {
  T* from[kN];
  int64_t low[kN], high[kN];
  int64_t common_low, common_high;  // elements that all lanes have

  void find_common() {
    common_low = *std::max_element(low, low + kN);
    common_high = *std::min_element(high, high + kN);
  }
};

// rows[j] holds element i + j of every lane; zeros where a lane has none.
template <typename T>
SNIPKERN_NOINLINE void load_partial(const LaneRuns<const T, kLanes<accumulator_t<T>>>& runs, int64_t i,
                                    Vec<accumulator_t<T>>* rows) {
  using A = accumulator_t<T>;
  constexpr int kN = kLanes<A>;
  for (int lane = 0; lane < kN; ++lane) {
    const int64_t low = std::max(runs.low[lane] - i, int64_t{0}), high = std::min<int64_t>(runs.high[lane] - i, kN);
    rows[lane] = Vec<A>{};
    if (low == 0 && high == kN) {
      rows[lane] = widen(runs.from[lane] + i);
    } else if (low < high) {
      T padded[kN] = {};
      std::memcpy(padded + low, runs.from[lane] + i + low, (high - low) * sizeof(T));
      rows[lane] = widen(padded);
    }
  }
  transpose<A>(rows);
}

// Packs `count` elements of a run: place(j, row) takes the vector of element j.
template <typename T, typename Place>
inline __attribute__((always_inline)) void pack_run(const LaneRuns<const T, kLanes<accumulator_t<T>>>& runs,
                                                    int64_t count, const Place& place) {
  using A = accumulator_t<T>;
  constexpr int kN = kLanes<A>;
  for (int64_t i = 0; i < count; i += kN) {
    // The last vectors repeat some of those before them rather than be partial.
    const int64_t first = count >= kN ? std::min(i, count - kN) : 0;
    Vec<A> rows[kN];
    if (first >= runs.common_low && first + kN <= runs.common_high) {
      SNIPKERN_UNROLL for (int lane = 0; lane < kN; ++lane) rows[lane] = widen(runs.from[lane] + first);
      transpose<A>(rows);
      SNIPKERN_UNROLL for (int j = 0; j < kN; ++j) place(first + j, rows[j]);
    } else {
      load_partial<T>(runs, first, rows);
      const int wide = static_cast<int>(std::min<int64_t>(kN, count - first));
      for (int j = 0; j < wide; ++j) place(first + j, rows[j]);
    }
  }
}

// Packs what the patches of one vector read of source channels [begin, end).
template <typename T>
SNIPKERN_NOINLINE void pack_source(const ConvPlan& plan, const UnitLanes<kLanes<accumulator_t<T>>>& lanes,
                                   const T* source, int64_t begin, int64_t end, accumulator_t<T>* slab) {
  using A = accumulator_t<T>;
  constexpr int kN = kLanes<A>;
  const int64_t line = plan.source_size[1], plane = plan.source_size[0] * line;
  const bool whole_rows = plan.grid[1] == 1 && plan.region[1] == line;
  const int64_t lines = whole_rows ? 1 : plan.region[0];
  const int64_t length = whole_rows ? plan.region[0] * line : plan.region[1];
  LaneRuns<const T, kN> runs;
  if (plan.clipped) {
    const int64_t first = begin * plane, count = (end - begin) * plane;
    for (int lane = 0; lane < kN; ++lane) {
      runs.from[lane] = source + lanes.source[lane] + first;
      runs.low[lane] = 0;
      runs.high[lane] = lanes.high[0][lane] > 0 ? count : 0;
    }
    runs.find_common();
    return pack_run<T>(runs, count, [&](int64_t j, Vec<A> row) __attribute__((always_inline)) {
      store(slab + (first + j) * plan.depth * kN, row);
    });
  }
  for (int64_t r = 0; r < lines; ++r) {
    for (int lane = 0; lane < kN; ++lane) {
      const bool used = whole_rows || (r >= lanes.low[0][lane] && r < lanes.high[0][lane]);
      runs.low[lane] = whole_rows ? lanes.low[0][lane] * line : lanes.low[1][lane];
      runs.high[lane] = !used ? 0 : whole_rows ? lanes.high[0][lane] * line : lanes.high[1][lane];
    }
    runs.find_common();
    const int32_t* map = plan.map + r * length;
    for (int64_t channel = begin; channel < end; ++channel) {
      A* to = slab + channel * plan.channel_stride * kN;
      const T* from = source + channel * plane + r * line;
      for (int lane = 0; lane < kN; ++lane) runs.from[lane] = from + lanes.source[lane];
      pack_run<T>(runs, length, [&](int64_t j, Vec<A> row) __attribute__((always_inline)) {
        if (map[j] >= 0) store(to + static_cast<int64_t>(map[j]) * kN, row);
      });
    }
  }
  for (int64_t channel = begin; channel < end; ++channel) {
    A* to = slab + channel * plan.channel_stride * kN;
    for (int64_t i = 0; i < plan.zero_count; ++i) store(to + static_cast<int64_t>(plan.zeros[i]) * kN, Vec<A>{});
  }
}

// The entries of a unit's output tensor of `channels` channels, at rows [begin,
// end) of positions, as runs; body(runs, vectors before the run, length) for
// each. Packed, they are [rows][plan.out_width()] vectors, `depth` of these
// side by side. Several channels only where they adjoin (see conv_plan.h).
template <typename T, int kN, typename Body>
inline void for_each_out_run(const ConvPlan& plan, const UnitLanes<kN>& lanes, int64_t channel, int64_t channels,
                             int64_t begin, int64_t end, T* out, const Body& body) {
  const int64_t line = plan.out_size[1], plane = plan.out_size[0] * line;
  const int64_t first = begin * plan.phases[0], height = (end - begin) * plan.phases[0], width = plan.out_width();
  const bool whole_rows = plan.grid[1] == 1;
  const int64_t lines = whole_rows ? 1 : height, length = whole_rows ? height * line * channels : width;
  LaneRuns<T, kN> runs;
  for (int64_t r = 0; r < lines; ++r) {
    T* from = out + channel * plane + (first + r) * line;
    for (int lane = 0; lane < kN; ++lane) {
      const int64_t rows = std::min(height, std::max<int64_t>(lanes.rows[lane] - first, 0));
      runs.from[lane] = from + lanes.out[lane];
      runs.low[lane] = 0;
      runs.high[lane] = whole_rows ? rows * line * channels : r < rows ? lanes.cols[lane] : 0;
    }
    runs.find_common();
    body(runs, r * length, length);
  }
}

// Packs the gradient at all positions of patches, zero where there is none:
// [patch rows][patch cols] vectors.
template <typename T>
SNIPKERN_NOINLINE void pack_gradient(const ConvPlan& plan, const UnitLanes<kLanes<accumulator_t<T>>>& lanes,
                                     const T* grad, int64_t channel, int64_t channels, accumulator_t<T>* packed) {
  using A = accumulator_t<T>;
  constexpr int kN = kLanes<A>;
  for_each_out_run(plan, lanes, channel, channels, 0, plan.patch[0], grad,
                   [&](const LaneRuns<const T, kN>& runs, int64_t at, int64_t length) {
                     pack_run<T>(runs, length, [&](int64_t j, Vec<A> row) __attribute__((always_inline)) {
                       store(packed + (at + j) * plan.depth * kN, row);
                     });
                   });
}

// Writes elements [i, i + kLanes) of the runs from packed vectors.
template <typename T>
SNIPKERN_NOINLINE void store_partial(const LaneRuns<T, kLanes<accumulator_t<T>>>& runs, int64_t i,
                                     const Vec<accumulator_t<T>>* rows) {
  constexpr int kN = kLanes<accumulator_t<T>>;
  for (int lane = 0; lane < kN; ++lane) {
    const int64_t count = std::min<int64_t>(kN, runs.high[lane] - i);
    if (count > 0) narrow_partial(runs.from[lane] + i, rows[lane], static_cast<int>(count));
  }
}

// Writes `count` packed elements of a run.
template <typename T>
void unpack_run(const accumulator_t<T>* packed, int64_t count, int64_t depth,
                const LaneRuns<T, kLanes<accumulator_t<T>>>& runs) {
  using A = accumulator_t<T>;
  constexpr int kN = kLanes<A>;
  for (int64_t i = 0; i < count; i += kN) {
    const int64_t first = count >= kN ? std::min(i, count - kN) : i;
    Vec<A> rows[kN];
    if (first + kN <= count) {
      SNIPKERN_UNROLL for (int j = 0; j < kN; ++j) rows[j] = load(packed + (first + j) * depth * kN);
    } else {
      for (int j = 0; j < kN; ++j) rows[j] = first + j < count ? load(packed + (first + j) * depth * kN) : Vec<A>{};
    }
    transpose<A>(rows);
    if (first + kN > runs.common_high) {
      store_partial<T>(runs, first, rows);
      continue;
    }
    SNIPKERN_UNROLL for (int lane = 0; lane < kN; ++lane) narrow(runs.from[lane] + first, rows[lane]);
  }
}

// Writes rows [begin, end) of positions of the patches of one vector, all
// phases of them.
template <typename T>
SNIPKERN_NOINLINE void unpack_rows(const ConvPlan& plan, const UnitLanes<kLanes<accumulator_t<T>>>& lanes,
                                   const accumulator_t<T>* packed, int64_t channel, int64_t channels, int64_t begin,
                                   int64_t end, T* out) {
  constexpr int kN = kLanes<accumulator_t<T>>;
  for_each_out_run(plan, lanes, channel, channels, begin, end, out,
                   [&](const LaneRuns<T, kN>& runs, int64_t at, int64_t length) {
                     unpack_run<T>(packed + at * plan.depth * kN, length, plan.depth, runs);
                   });
}

}  // namespace
}  // namespace SNIPKERN_TIER
}  // namespace snipkern
