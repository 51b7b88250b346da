// Rows and columns of the weight in the grid's order, and back. A feature's samples are a stretch of a packed tile, so
// that the order only decides where whole lines are written or read. No include guard: compiled once per tier and
// kernel file.

#include "cpu/bsr_scatter.kernel.h"

namespace snipkern {
namespace SNIPKERN_TIER {
namespace {

// pack_tile(), with feature f packed as number place[f], or as f without places.
template <typename T, typename S>
void pack_tile_in_order(const T* x, const Tiling<S>& tiling, int64_t features, const int32_t* place, int64_t tile,
                        int64_t begin, int64_t end, S* packed) {
  if (place == nullptr) return pack_tile(x, tiling, features, tile, begin, end, packed);
  using A = accumulator_t<T>;
  constexpr int kN = kLanes<A>;
  const int64_t lines = tiling.lines(tile);
  for (int64_t feature = begin; feature < end; feature += kN) {
    const int wide = static_cast<int>(std::min<int64_t>(kN, end - feature));
    for (int64_t line = 0; line < lines; ++line) {
      const int64_t sample = tile * tiling.samples() + line * tiling.kLineSamples;
      A* to = reinterpret_cast<A*>(packed) + line * kN;
      Vec<A> rows[kN];
      load_transposed<S>(x + sample * features + feature, features, tiling.batch - sample, wide, rows);
      for (int i = 0; i < wide; ++i) store(to + place[feature + i] * lines * kN, rows[i]);
    }
  }
}

// pack(), likewise.
template <typename T, typename S>
void pack_in_order(const T* x, const Tiling<S>& tiling, int64_t features, const int32_t* place, S* packed,
                   const TaskRunner& run) {
  if (place == nullptr) return pack(x, tiling, features, packed, run);
  constexpr int kN = kLanes<accumulator_t<T>>;
  const int64_t tiles = tiling.tiles(), groups = (features + kN - 1) / kN;
  if (tiles == 0) return;
  const double work = 4.0 * tiling.batch * features;
  const int64_t parts = std::min(groups, task_count(work, 16 * tiles) / tiles + 1);
  run_if_worth(run, work, tiles * parts, [&](int64_t task) {
    const int64_t tile = task / parts, part = task % parts;
    pack_tile_in_order(x, tiling, features, place, tile, part_begin(groups, parts, part) * kN,
                       std::min(features, part_begin(groups, parts, part + 1) * kN),
                       packed + tiling.offset(tile, features));
  });
}

// Writes outputs [begin, end) of the tile that begins at `sample`, where number f is packed at place[f], to y.
template <typename T, int kVectors>
void unpack_places(const accumulator_t<T>* packed, const int32_t* place, int64_t batch, int64_t outputs, int64_t sample,
                   int64_t begin, int64_t end, T* y) {
  using A = accumulator_t<T>;
  constexpr int kN = kLanes<A>;
  alignas(64) A group[kN * kVectors * kN];
  for (int64_t output = begin; output < end; output += kN) {
    const int wide = static_cast<int>(std::min<int64_t>(kN, outputs - output));
    for (int i = 0; i < wide; ++i) {
      const A* from = packed + place[output + i] * int64_t{kVectors * kN};
      SNIPKERN_UNROLL for (int v = 0; v < kVectors; ++v) store(group + (i * kVectors + v) * kN, load(from + v * kN));
    }
    unpack_group<T, kVectors>(group, batch, outputs, sample, output, y);
  }
}

// Outputs [begin, end) of one tile, from the grid's order to y.
template <typename T>
void write_outputs(const SpmmBsr& call, const accumulator_t<T>* grid, int vectors, int64_t sample, int64_t begin,
                   int64_t end) {
  with_lines<accumulator_t<T>>(vectors, [&](auto count) {
    unpack_places<T, decltype(count)::value>(grid, call.output_place(), call.batch, call.outputs(), sample, begin, end,
                                             static_cast<T*>(call.y));
  });
}

// The call with its bias in the grid's order.
template <typename T>
SpmmBsr with_grid_bias(const SpmmBsr& call) {
  SpmmBsr moved = call;
  if (call.bias == nullptr || call.output_place() == nullptr) return moved;
  T* bias = scratch<T>(Slot::kBias, call.outputs());
  for (int64_t i = 0; i < call.outputs(); ++i) bias[call.output_place()[i]] = static_cast<const T*>(call.bias)[i];
  moved.bias = bias;
  return moved;
}

// The forward's tiles. With orders all outputs of a tile are there before any is written, and they should stay in L2
// beside the inputs; but narrower tiles read the values more often, which is worth it where these stay in L2 as well.
template <typename A>
Tiling<A> forward_tiling(const SpmmBsr& call) {
  const bool beside =
      call.output_place() != nullptr && call.index.nnz() * static_cast<int64_t>(sizeof(A)) <= Tiling<A>::kTileBytes;
  return Tiling<A>(call.batch, call.inputs() + (beside ? call.outputs() : 0));
}

}  // namespace
}  // namespace SNIPKERN_TIER
}  // namespace snipkern
