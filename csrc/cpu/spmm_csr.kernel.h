// See spmm_csr.h and sddmm_csr.h. Compiled once per ISA tier.

#include "cpu/tiles.kernel.h"
// Builds on the vectors that tiles bring.
#include "cpu/spmv_csr.kernel.h"

namespace snipkern {
namespace SNIPKERN_TIER {
namespace {

// kLanes outputs of one tile: each kept weight is a broadcast and kVectors FMAs. As many sets of sums as hide the FMA's
// latency take turns.
template <typename T, int kLines, typename I>
void multiply_group(const SpmmCsr& call, const I* index, const accumulator_t<T>* values, const tile_t<T>* x,
                    int64_t sample, int64_t first) {
  using A = accumulator_t<T>;
  constexpr int kN = kLanes<A>;
  constexpr int kVectors = kLines * kLineVectors<tile_t<T>>;
  constexpr int kSets = kVectors <= 2 ? 4 : kVectors == 4 ? 2 : 1;
  const int64_t last = std::min<int64_t>(first + kN, call.outputs);
  alignas(64) A group[kN * kVectors * kN];
  for (int64_t output = first; output < first + kN; ++output) {
    Vec<A> sums[kSets][kVectors] = {};
    if (output < last) {
      if (call.bias != nullptr) {
        const A bias = widen_one(static_cast<const T*>(call.bias) + output);
        SNIPKERN_UNROLL for (int v = 0; v < kVectors; ++v) sums[0][v] = broadcast<Vec<A>>(bias);
      }
      const auto add = [&](int64_t k, Vec<A>* sum) __attribute__((always_inline)) {
        const Vec<A> weight = broadcast<Vec<A>>(values[k]);
        Vec<A> samples[kVectors];
        load_feature<kLines>(x, index[k], samples);
        SNIPKERN_UNROLL for (int v = 0; v < kVectors; ++v) sum[v] = multiply_add<A>(weight, samples[v], sum[v]);
      };
      const int64_t end = call.ptr[output + 1];
      int64_t k = call.ptr[output];
      for (; k + kSets <= end; k += kSets) {
        SNIPKERN_UNROLL for (int s = 0; s < kSets; ++s) add(k + s, sums[s]);
      }
      for (; k < end; ++k) add(k, sums[0]);
    }
    SNIPKERN_UNROLL for (int v = 0; v < kVectors; ++v) {
      SNIPKERN_UNROLL for (int s = 1; s < kSets; ++s) sums[0][v] += sums[s][v];
      store(group + ((output - first) * kVectors + v) * kN, sums[0][v]);
    }
  }
  unpack_group<T, kVectors>(group, call.batch, call.outputs, sample, first, static_cast<T*>(call.y));
}

// Groups [begin, end) of kLanes outputs of one packed tile.
template <typename T>
void multiply_groups(const SpmmCsr& call, const Tiling<tile_t<T>>& tiling, const accumulator_t<T>* values,
                     const tile_t<T>* x, int64_t tile, int64_t begin, int64_t end) {
  with_lines<tile_t<T>>(tiling.lines(tile), [&](auto lines) {
    with_index(call.index, [&](auto* index) {
      for (int64_t group = begin; group < end; ++group) {
        multiply_group<T, decltype(lines)::value>(call, index, values, x, tile * tiling.samples(),
                                                  group * kLanes<accumulator_t<T>>);
      }
    });
  });
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
    const int64_t end = part_begin(nnz, parts, part + 1);
    int64_t k = part_begin(nnz, parts, part);
    if (call.order == nullptr) return convert(values, k, end, ordered);
    for (; k < end; ++k) ordered[k] = widen_one(values + call.order[k]);
  });
  return ordered;
}

inline double multiply_work(const SpmmCsr& call) {
  return static_cast<double>(call.batch) * (call.ptr[call.outputs] + 16.0 * call.outputs);
}

// All outputs of a packed batch.
template <typename T>
void multiply(const SpmmCsr& call, const Tiling<tile_t<T>>& tiling, const accumulator_t<T>* values,
              const tile_t<T>* packed, const TaskRunner& run) {
  const int64_t tiles = tiling.tiles();
  const int64_t groups = (call.outputs + kLanes<accumulator_t<T>> - 1) / kLanes<accumulator_t<T>>;
  const int64_t parts = std::min(groups, task_count(multiply_work(call) / tiles, 16 * run.threads()));
  run_if_worth(run, multiply_work(call), tiles * parts, [&](int64_t task) {
    const int64_t tile = task / parts, part = task % parts;
    multiply_groups<T>(call, tiling, values, packed + tiling.offset(tile, call.inputs), tile,
                       part_begin(groups, parts, part), part_begin(groups, parts, part + 1));
  });
}

// All outputs of one tile.
template <typename T>
void multiply_tile(const SpmmCsr& call, const Tiling<tile_t<T>>& tiling, const accumulator_t<T>* values,
                   const tile_t<T>* packed, int64_t tile) {
  multiply_groups<T>(call, tiling, values, packed, tile, 0,
                     (call.outputs + kLanes<accumulator_t<T>> - 1) / kLanes<accumulator_t<T>>);
}

template <typename T>
void spmm_csr(const SpmmCsr& call, const TaskRunner& run) {
  using A = accumulator_t<T>;
  if (call.batch == 0 || call.outputs == 0) return;
  const Tiling<tile_t<T>> tiling(call.batch, call.inputs);
  const T* x = static_cast<const T*>(call.x);
  const A* values = ordered_values<T>(call, run);
  if (call.batch == 1 && call.order == nullptr) return spmv_csr<T>(call, values, run);
  if (whole_tiles(tiling.tiles(), run.threads())) {
    run_if_worth(run, multiply_work(call), tiling.tiles(), [&](int64_t tile) {
      tile_t<T>* packed = scratch<tile_t<T>>(Slot::kPackedInput, tiling.tile_size(call.inputs));
      pack_tile(x, tiling, call.inputs, tile, 0, call.inputs, packed);
      multiply_tile<T>(call, tiling, values, packed, tile);
    });
  } else {
    tile_t<T>* packed = scratch<tile_t<T>>(Slot::kPackedInput, tiling.size(call.inputs));
    pack(x, tiling, call.inputs, packed, run);
    multiply<T>(call, tiling, values, packed, run);
  }
}

}  // namespace
}  // namespace SNIPKERN_TIER
}  // namespace snipkern
