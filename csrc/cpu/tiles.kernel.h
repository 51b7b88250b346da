// Batches as tiles: [feature][samples] blocks in which one feature's samples are neighbours, so
// that a weight is one broadcast and a few FMAs. No include guard: compiled once per tier and
// kernel file.

#include "cpu/simd.kernel.h"

namespace snipkern {
namespace SNIPKERN_TIER {
namespace {

// Vectors per feature of the widest tile: 64 samples of float on AVX-512 and AVX2.
constexpr int kTileVectors = SNIPKERN_VECTOR_BYTES == 64 ? 4 : 8;

// How a batch is cut into tiles. A kernel reads a tile here and there, so it should stay in half of a core's L2 (a
// layer of 4096 inputs: 64 samples); where there are more features, tiles are narrower. The last tile of a batch is as
// narrow as whole vectors allow.
template <typename A>
struct Tiling {
  static constexpr int64_t kTileBytes = 1 << 20;

  int64_t batch;
  int width = kTileVectors;  // vectors per feature of a full tile, a power of two

  Tiling(int64_t samples, int64_t features) : batch(samples) {
    while (width > 1 && (features * width * SNIPKERN_VECTOR_BYTES > kTileBytes || width / 2 * kLanes<A> >= batch)) {
      width /= 2;
    }
  }

  int64_t samples() const { return width * kLanes<A>; }
  int64_t tiles() const { return (batch + samples() - 1) / samples(); }

  int vectors(int64_t tile) const {
    const int64_t wanted = std::min(samples(), batch - tile * samples());
    int count = 1;
    while (count * kLanes<A> < wanted) count *= 2;
    return count;
  }

  // Elements before a tile, and of the whole packed batch.
  int64_t offset(int64_t tile, int64_t features) const { return tile * samples() * features; }
  int64_t size(int64_t features) const { return offset(tiles(), features); }
};

// Calls body with the number of vectors as a constant: one instance per width that a tile can have.
template <typename Body>
inline void with_vectors(int vectors, const Body& body) {
  switch (vectors) {
    case 1:
      return body(std::integral_constant<int, 1>{});
    case 2:
      return body(std::integral_constant<int, 2>{});
    case 4:
      return body(std::integral_constant<int, 4>{});
    default:
      return body(std::integral_constant<int, kTileVectors>{});
  }
}

// kLanes features of kLanes samples, transposed: row `sample`, stride `features`. The first `tall` samples and `wide`
// features are there, zeros stand for the rest.
template <typename T>
inline __attribute__((always_inline)) void load_transposed(const T* x, int64_t features, int tall, int wide,
                                                           Vec<accumulator_t<T>>* rows) {
  using A = accumulator_t<T>;
  constexpr int kN = kLanes<A>;
  if (tall >= kN && wide == kN) {
    SNIPKERN_UNROLL for (int i = 0; i < kN; ++i) rows[i] = widen(x + i * features);
  } else {
    for (int i = 0; i < kN; ++i) rows[i] = i < tall ? widen_partial(x + i * features, wide) : Vec<A>{};
  }
  transpose<A>(rows);
}

// Packs features [begin, end) of one tile of x [batch, features] to [feature][vectors x lanes]; missing samples become
// zeros.
template <typename T>
void pack_tile(const T* x, const Tiling<accumulator_t<T>>& tiling, int64_t features, int64_t tile, int64_t begin,
               int64_t end, accumulator_t<T>* packed) {
  using A = accumulator_t<T>;
  constexpr int kN = kLanes<A>;
  const int vectors = tiling.vectors(tile);
  for (int64_t feature = begin; feature < end; feature += kN) {
    const int wide = static_cast<int>(std::min<int64_t>(kN, end - feature));
    for (int v = 0; v < vectors; ++v) {
      const int64_t sample = tile * tiling.samples() + v * kN;
      const int tall = static_cast<int>(std::min<int64_t>(kN, tiling.batch - sample));
      A* to = packed + (feature * vectors + v) * kN;
      Vec<A> rows[kN];
      load_transposed(x + sample * features + feature, features, tall, wide, rows);
      if (wide == kN) {
        SNIPKERN_UNROLL for (int i = 0; i < kN; ++i) store(to + i * vectors * kN, rows[i]);
      } else {
        for (int i = 0; i < wide; ++i) store(to + i * vectors * kN, rows[i]);
      }
    }
  }
}

// Packs a whole batch.
template <typename T>
void pack(const T* x, const Tiling<accumulator_t<T>>& tiling, int64_t features, accumulator_t<T>* packed,
          const TaskRunner& run) {
  constexpr int kN = kLanes<accumulator_t<T>>;
  const int64_t tiles = tiling.tiles();
  if (tiles == 0) return;
  const int64_t groups = (features + kN - 1) / kN;
  // Packing moves about one element where a product does 4 multiply-adds.
  const double work = 4.0 * tiling.batch * features;
  const int64_t parts = std::min(groups, task_count(work, 16 * tiles) / tiles + 1);
  run_if_worth(run, work, tiles * parts, [&](int64_t task) {
    const int64_t tile = task / parts, part = task % parts;
    pack_tile(x, tiling, features, tile, part_begin(groups, parts, part) * kN,
              std::min(features, part_begin(groups, parts, part + 1) * kN), packed + tiling.offset(tile, features));
  });
}

// Writes kLanes packed outputs [output][vectors x lanes] of the tile that begins at `sample` to y [batch, outputs].
template <typename T, int kVectors>
void unpack_group(const accumulator_t<T>* group, int64_t batch, int64_t outputs, int64_t sample, int64_t output, T* y) {
  using A = accumulator_t<T>;
  constexpr int kN = kLanes<A>;
  const int wide = static_cast<int>(std::min<int64_t>(kN, outputs - output));
  for (int v = 0; v < kVectors; ++v, sample += kN) {
    Vec<A> rows[kN];
    SNIPKERN_UNROLL for (int i = 0; i < kN; ++i) rows[i] = load(group + (i * kVectors + v) * kN);
    transpose<A>(rows);
    T* to = y + sample * outputs + output;
    if (batch - sample >= kN && wide == kN) {
      SNIPKERN_UNROLL for (int i = 0; i < kN; ++i) narrow(to + i * outputs, rows[i]);
    } else {
      for (int i = 0; i < kN && sample + i < batch; ++i) narrow_partial(to + i * outputs, rows[i], wide);
    }
  }
}

}  // namespace
}  // namespace SNIPKERN_TIER
}  // namespace snipkern
