// See sddmm_csr.h. Compiled once per ISA tier.

#include "cpu/tiles.kernel.h"

namespace snipkern {
namespace SNIPKERN_TIER {
namespace {

// Adds one tile's share to the sums of rows [begin, end): for each kept weight kVectors products,
// and for every kLanes weights of a row one joint horizontal sum.
template <typename A, int kVectors>
void dot_rows(const SddmmCsr& call, const A* a, const A* b, int64_t begin, int64_t end, A* sums) {
  constexpr int kN = kLanes<A>;
  for (int64_t row = begin; row < end; ++row) {
    Vec<A> left[kVectors];
    for (int v = 0; v < kVectors; ++v) left[v] = load(a + (row * kVectors + v) * kN);
    const int64_t stop = call.ptr[row + 1];
    for (int64_t k = call.ptr[row]; k < stop; k += kN) {
      const int count = static_cast<int>(std::min<int64_t>(kN, stop - k));
      Vec<A> dots[kN];
      for (int i = 0; i < kN; ++i) {
        const A* right = b + static_cast<int64_t>(call.index[k + (i < count ? i : 0)]) * kVectors * kN;
        Vec<A> low = left[0] * load(right), high{};
        for (int v = 1; v < kVectors; ++v) {
          Vec<A>& half = v % 2 ? high : low;
          half = multiply_add<A>(left[v], load(right + v * kN), half);
        }
        dots[i] = low + high;
      }
      narrow_partial(sums + k, widen_partial(sums + k, count) + sum_rows<A>(dots), count);
    }
  }
}

template <typename A>
void dot_rows(const SddmmCsr& call, int64_t tile, const A* packed_a, const A* packed_b, int64_t begin, int64_t end,
              A* sums) {
  const A* a = packed_a + tile_offset<A>(tile, call.rows);
  const A* b = packed_b + tile_offset<A>(tile, call.cols);
  switch (tile_vectors<A>(call.batch, tile)) {
    case 1:
      return dot_rows<A, 1>(call, a, b, begin, end, sums);
    case 2:
      return dot_rows<A, 2>(call, a, b, begin, end, sums);
    case 4:
      return dot_rows<A, 4>(call, a, b, begin, end, sums);
    default:
      return dot_rows<A, kTileVectors<A>>(call, a, b, begin, end, sums);
  }
}

// Rows cut into parts of nearly equal numbers of kept weights: the first row of `part`.
inline int64_t balanced_row(const SddmmCsr& call, int64_t parts, int64_t part) {
  if (part == parts) return call.rows;
  const int64_t target = part_begin(call.ptr[call.rows], parts, part);
  return std::lower_bound(call.ptr, call.ptr + call.rows, target) - call.ptr;
}

template <typename T>
void sddmm_csr(const SddmmCsr& call, const TaskRunner& run) {
  using A = accumulator_t<T>;
  constexpr int kN = kLanes<A>;
  const int64_t nnz = call.ptr[call.rows];
  if (nnz == 0) return;
  A* a = scratch<A>(Slot::kPackedGradient, packed_size<A>(call.batch, call.rows));
  A* b = scratch<A>(Slot::kPackedInput, packed_size<A>(call.batch, call.cols));
  pack(static_cast<const T*>(call.a), call.batch, call.rows, a, run);
  pack(static_cast<const T*>(call.b), call.batch, call.cols, b, run);
  T* values = static_cast<T*>(call.values);
  A* sums;
  if constexpr (std::is_same_v<T, A>) {
    sums = values;
  } else {
    sums = scratch<A>(Slot::kValues, nnz);
  }
  const int64_t tiles = tile_count<A>(call.batch);
  const double work = static_cast<double>(call.batch) * nnz;
  const int64_t parts = task_count(work, 64);
  run_if_worth(run, work, parts, [&](int64_t part) {
    const int64_t begin = balanced_row(call, parts, part), end = balanced_row(call, parts, part + 1);
    const int64_t first = call.ptr[begin], last = call.ptr[end];
    std::fill(sums + first, sums + last, A{});
    for (int64_t tile = 0; tile < tiles; ++tile) dot_rows<A>(call, tile, a, b, begin, end, sums);
    if constexpr (!std::is_same_v<T, A>) {
      for (int64_t k = first; k < last; k += kN) {
        const int count = static_cast<int>(std::min<int64_t>(kN, last - k));
        narrow_partial(values + k, widen_partial(sums + k, count), count);
      }
    }
  });
}

}  // namespace
}  // namespace SNIPKERN_TIER
}  // namespace snipkern
