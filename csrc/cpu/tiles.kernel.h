// Batches as tiles: [feature][samples] blocks in which one feature's samples are neighbours, so
// that a weight is one broadcast and a few FMAs. A tile holds kTile samples; the last one of a
// batch is as narrow as whole vectors allow. No include guard: compiled once per tier and kernel
// file.

#include "cpu/simd.kernel.h"

namespace snipkern {
namespace SNIPKERN_TIER {
namespace {

// Vectors per feature of a full tile. 64 samples of float on AVX-512 and AVX2: a layer of 4096
// inputs packs to 1 MiB, which stays in a core's L2.
template <typename A>
constexpr int kTileVectors = SNIPKERN_VECTOR_BYTES == 64 ? 4 : 8;
template <typename A>
constexpr int kTile = kTileVectors<A> * kLanes<A>;

template <typename A>
int64_t tile_count(int64_t batch) {
  return (batch + kTile<A> - 1) / kTile<A>;
}

// Vectors per feature of one tile: a power of two that covers its samples.
template <typename A>
int tile_vectors(int64_t batch, int64_t tile) {
  const int64_t samples = std::min<int64_t>(kTile<A>, batch - tile * kTile<A>);
  int vectors = 1;
  while (vectors * kLanes<A> < samples) vectors *= 2;
  return vectors;
}

// Elements of a packed batch.
template <typename A>
int64_t packed_size(int64_t batch, int64_t features) {
  return tile_count<A>(batch) * kTile<A> * features;
}

// Where a tile begins; only the last tile can be narrower than kTile.
template <typename A>
inline int64_t tile_offset(int64_t tile, int64_t features) {
  return tile * kTile<A> * features;
}

// Packs features [begin, end) of one tile of x [batch, features]; missing samples become zeros.
template <typename T>
void pack_tile(const T* x, int64_t batch, int64_t features, int64_t tile, int64_t begin, int64_t end,
               accumulator_t<T>* packed) {
  using A = accumulator_t<T>;
  constexpr int kN = kLanes<A>;
  const int vectors = tile_vectors<A>(batch, tile);
  A* out = packed + tile_offset<A>(tile, features);
  for (int64_t feature = begin; feature < end; feature += kN) {
    const int wide = static_cast<int>(std::min<int64_t>(kN, end - feature));
    for (int v = 0; v < vectors; ++v) {
      const int64_t sample = tile * kTile<A> + v * kN;
      Vec<A> rows[kN];
      for (int i = 0; i < kN; ++i) {
        rows[i] = sample + i < batch ? widen_partial(x + (sample + i) * features + feature, wide) : Vec<A>{};
      }
      transpose<A>(rows);
      for (int i = 0; i < wide; ++i) store(out + ((feature + i) * vectors + v) * kN, rows[i]);
    }
  }
}

// Packs a whole batch.
template <typename T>
void pack(const T* x, int64_t batch, int64_t features, accumulator_t<T>* packed, const TaskRunner& run) {
  using A = accumulator_t<T>;
  constexpr int kN = kLanes<A>;
  const int64_t tiles = tile_count<A>(batch);
  if (tiles == 0) return;
  const int64_t groups = (features + kN - 1) / kN;
  // Packing moves about one element where a product does 4 multiply-adds.
  const double work = 4.0 * batch * features;
  const int64_t parts = std::min(groups, task_count(work, 16 * tiles) / tiles + 1);
  run_if_worth(run, work, tiles * parts, [&](int64_t task) {
    const int64_t part = task % parts;
    pack_tile(x, batch, features, task / parts, part_begin(groups, parts, part) * kN,
              std::min(features, part_begin(groups, parts, part + 1) * kN), packed);
  });
}

// Writes kLanes packed outputs [output][vectors x lanes] of one tile to y [batch, outputs].
template <typename T, int kVectors>
void unpack_group(const accumulator_t<T>* group, int64_t batch, int64_t outputs, int64_t tile, int64_t output, T* y) {
  using A = accumulator_t<T>;
  constexpr int kN = kLanes<A>;
  const int wide = static_cast<int>(std::min<int64_t>(kN, outputs - output));
  for (int v = 0; v < kVectors; ++v) {
    const int64_t sample = tile * kTile<A> + v * kN;
    Vec<A> rows[kN];
    for (int i = 0; i < kN; ++i) rows[i] = load(group + (i * kVectors + v) * kN);
    transpose<A>(rows);
    const int samples = static_cast<int>(std::min<int64_t>(kN, batch - sample));
    for (int i = 0; i < samples; ++i) narrow_partial(y + (sample + i) * outputs + output, rows[i], wide);
  }
}

}  // namespace
}  // namespace SNIPKERN_TIER
}  // namespace snipkern
