// The weights of a convolution as lists of taps. No include guard: compiled
// once per tier and kernel file.

#include "cpu/simd.kernel.h"

namespace snipkern {
namespace SNIPKERN_TIER {

// The walks have files of their own, conv_sum.cpp and conv_weight_grad.cpp: compiling them takes long.
template <typename T>
void convolve(const Convolution<T>& call, const TaskRunner& run);
template <typename T>
void convolve_weight_grad(const ConvWeightGrad<T>& call, const TaskRunner& run);

namespace {

// Sums of one register tile: 16 of 32 registers, or 12 of 16, leave room for the operands.
constexpr int kTileLimit = SNIPKERN_VECTOR_BYTES == 64 ? 16 : 12;

template <typename A>
constexpr ConvVectors kVectors{kLanes<A>, SNIPKERN_VECTOR_BYTES, kTileLimit};

// Row lists of the weight's view: a group's channels keep the same columns.
struct RowLists {
  const int32_t* ptr;     // [groups + 1]
  IndexList columns;      // [ptr[groups]], ascending within a group
  const int32_t* starts;  // [groups + 1]: values before a group; null where that is `ptr`
  int64_t groups, height;

  int64_t values_before(int64_t group) const { return starts != nullptr ? starts[group] : ptr[group]; }
};

// Runs body(begin, end) over stretches of [0, total), `work` multiply-adds
// together.
template <typename Body>
inline void run_stretches(const TaskRunner& run, double work, int64_t total, const Body& body) {
  const int64_t parts = std::max<int64_t>(1, std::min(total, task_count(work, 64)));
  run_if_worth(run, work, parts,
               [&](int64_t part) { body(part_begin(total, parts, part), part_begin(total, parts, part + 1)); });
}

template <typename A>
struct PlacedRows {
  TapLists<A> lists;
  const int32_t* order;  // position in the caller's values of each value; null
                         // where they are in the same order
};

// The tap lists of a forward walk, in kIndices and kValues. `values` may be
// null.
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
        convert(values, begin * kN, std::min(kept, end * kN), widened);
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
      plan.count_taps(rows.columns, first, first + length, next);
      for (int64_t tap = 0, at = first; tap < lists; ++tap) {
        const int64_t count = next[tap];
        next[tap] = static_cast<int32_t>(at);
        at += count;
      }
      const int64_t start = rows.values_before(group);
      // The first row's part of `order` gets the permutation; the other rows
      // repeat it.
      plan.place_sorted(rows.columns, first, first + length, next, offsets, order + start - first);
      const int64_t height = length == 0 ? 0 : (rows.values_before(group + 1) - start) / length;
      for (int64_t r = height - 1; r >= 0; --r) {
        const int64_t own = start + r * length;
        for (int64_t k = 0; sorted != nullptr && k < length; ++k) {
          sorted[own + k] = widen_one(values + own + order[start + k]);
        }
        for (int64_t k = 0; r > 0 && k < length; ++k) order[own + k] = static_cast<int32_t>(own + order[start + k]);
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
