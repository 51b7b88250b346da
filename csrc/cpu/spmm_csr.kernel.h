// See spmm_csr.h. Compiled once per ISA tier.

#include "cpu/tiles.kernel.h"

namespace snipkern {
namespace SNIPKERN_TIER {
namespace {

// kLanes outputs of one tile: each kept weight is a broadcast and kVectors FMAs. Two sets of sums,
// over the even and the odd entries, hide the FMA's latency.
template <typename T, int kVectors>
void multiply_group(const SpmmCsr& call, const accumulator_t<T>* values, const accumulator_t<T>* packed, int64_t tile,
                    int64_t first) {
  using A = accumulator_t<T>;
  constexpr int kN = kLanes<A>;
  const A* x = packed + tile_offset<A>(tile, call.inputs);
  const int64_t last = std::min<int64_t>(first + kN, call.outputs);
  alignas(64) A sums[kN * kVectors * kN];
  for (int64_t output = first; output < first + kN; ++output) {
    Vec<A> even[kVectors] = {}, odd[kVectors] = {};
    if (output < last) {
      if (call.bias != nullptr) {
        const A bias = widen_partial(static_cast<const T*>(call.bias) + output, 1)[0];
        for (int v = 0; v < kVectors; ++v) even[v] = broadcast<Vec<A>>(bias);
      }
      const int64_t end = call.ptr[output + 1];
      int64_t k = call.ptr[output];
      for (; k + 1 < end; k += 2) {
        const Vec<A> w0 = broadcast<Vec<A>>(values[k]), w1 = broadcast<Vec<A>>(values[k + 1]);
        const A* x0 = x + static_cast<int64_t>(call.index[k]) * kVectors * kN;
        const A* x1 = x + static_cast<int64_t>(call.index[k + 1]) * kVectors * kN;
        for (int v = 0; v < kVectors; ++v) {
          even[v] = multiply_add<A>(w0, load(x0 + v * kN), even[v]);
          odd[v] = multiply_add<A>(w1, load(x1 + v * kN), odd[v]);
        }
      }
      if (k < end) {
        const Vec<A> w = broadcast<Vec<A>>(values[k]);
        const A* x0 = x + static_cast<int64_t>(call.index[k]) * kVectors * kN;
        for (int v = 0; v < kVectors; ++v) even[v] = multiply_add<A>(w, load(x0 + v * kN), even[v]);
      }
    }
    for (int v = 0; v < kVectors; ++v) store(sums + ((output - first) * kVectors + v) * kN, even[v] + odd[v]);
  }
  unpack_group<T, kVectors>(sums, call.batch, call.outputs, tile, first, static_cast<T*>(call.y));
}

template <typename T>
void multiply_group(const SpmmCsr& call, const accumulator_t<T>* values, const accumulator_t<T>* packed, int64_t tile,
                    int64_t first) {
  switch (tile_vectors<accumulator_t<T>>(call.batch, tile)) {
    case 1:
      return multiply_group<T, 1>(call, values, packed, tile, first);
    case 2:
      return multiply_group<T, 2>(call, values, packed, tile, first);
    case 4:
      return multiply_group<T, 4>(call, values, packed, tile, first);
    default:
      return multiply_group<T, kTileVectors<accumulator_t<T>>>(call, values, packed, tile, first);
  }
}

// The weights in list order and accumulation type: the caller's own array where it is that already.
template <typename T>
const accumulator_t<T>* ordered_values(const SpmmCsr& call, const TaskRunner& run) {
  using A = accumulator_t<T>;
  const T* values = static_cast<const T*>(call.values);
  if constexpr (std::is_same_v<T, A>) {
    if (call.order == nullptr) return values;
  }
  const int64_t nnz = call.ptr[call.outputs];
  A* ordered = scratch<A>(Slot::kValues, nnz);
  const double work = 4.0 * nnz;
  const int64_t parts = task_count(work, 64);
  run_if_worth(run, work, parts, [&](int64_t part) {
    for (int64_t k = part_begin(nnz, parts, part); k < part_begin(nnz, parts, part + 1); ++k) {
      ordered[k] = widen_partial(values + (call.order != nullptr ? call.order[k] : k), 1)[0];
    }
  });
  return ordered;
}

template <typename T>
void spmm_csr(const SpmmCsr& call, const TaskRunner& run) {
  using A = accumulator_t<T>;
  constexpr int kN = kLanes<A>;
  if (call.batch == 0 || call.outputs == 0) return;
  const A* values = ordered_values<T>(call, run);
  A* packed = scratch<A>(Slot::kPackedInput, packed_size<A>(call.batch, call.inputs));
  pack(static_cast<const T*>(call.x), call.batch, call.inputs, packed, run);
  const int64_t tiles = tile_count<A>(call.batch);
  const int64_t groups = (call.outputs + kN - 1) / kN;
  const double work = static_cast<double>(call.batch) * (call.ptr[call.outputs] + 16.0 * call.outputs);
  const int64_t parts = std::min(groups, task_count(work / tiles, 64));
  run_if_worth(run, work, tiles * parts, [&](int64_t task) {
    const int64_t part = task % parts;
    for (int64_t group = part_begin(groups, parts, part); group < part_begin(groups, parts, part + 1); ++group) {
      multiply_group<T>(call, values, packed, task / parts, group * kN);
    }
  });
}

}  // namespace
}  // namespace SNIPKERN_TIER
}  // namespace snipkern
