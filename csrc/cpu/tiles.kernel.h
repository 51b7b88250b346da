// Batches as tiles: [feature][samples] blocks in which one feature's samples are neighbours, so
// that a weight is one broadcast and a few FMAs. No include guard: compiled once per tier and
// kernel file.

#include "cpu/simd.kernel.h"

namespace snipkern {
namespace SNIPKERN_TIER {
namespace {

// Vectors per feature of the widest tile: 64 samples of float on AVX-512 and AVX2.
constexpr int kTileVectors = SNIPKERN_VECTOR_BYTES == 64 ? 4 : 8;

// Two samples of one feature in one lane of a tile: products are bound by how many lines of it they load.
struct Pair {
  BFloat16 first, second;
};

// What the tiles of a tensor's elements consist of.
template <typename T>
struct TileElement {
  using type = accumulator_t<T>;
};
template <>
struct TileElement<BFloat16> {
  using type = Pair;
};
template <typename T>
using tile_t = typename TileElement<T>::type;

// Vectors of samples in a line, which is one vector of tile elements.
template <typename S>
constexpr int kLineVectors = std::is_same_v<S, Pair> ? 2 : 1;

inline __attribute__((always_inline)) void load_line(const float* from, Vec<float>* samples) {
  samples[0] = load(from);
}
inline __attribute__((always_inline)) void load_line(const double* from, Vec<double>* samples) {
  samples[0] = load(from);
}

inline __attribute__((always_inline)) void load_line(const Pair* from, Vec<float>* samples) {
  const IntVec bits = load(reinterpret_cast<const int32_t*>(from));
  samples[0] = (Vec<float>)(bits << 16);
  samples[1] = (Vec<float>)(bits & static_cast<int32_t>(0xffff0000));
}

// All samples of one feature of a tile of kLines lines.
template <int kLines, typename S, typename V>
inline __attribute__((always_inline)) void load_feature(const S* tile, int64_t feature, V* samples) {
  constexpr int64_t kElements = SNIPKERN_VECTOR_BYTES / sizeof(S);
  SNIPKERN_UNROLL for (int l = 0; l < kLines; ++l) {
    load_line(tile + (feature * kLines + l) * kElements, samples + l * kLineVectors<S>);
  }
}

// How a batch is cut into tiles of elements S. A kernel reads a tile here and there, so it should stay in half of a
// core's L2 (a layer of 4096 inputs: 64 samples of float); where there are more features, tiles are narrower. The last
// tile of a batch is as narrow as whole lines allow.
template <typename S>
struct Tiling {
  static constexpr int64_t kTileBytes = 1 << 20;
  static constexpr int64_t kLineElements = SNIPKERN_VECTOR_BYTES / sizeof(S);
  static constexpr int64_t kLineSamples = kLineElements * kLineVectors<S>;

  int64_t batch;
  int width = kTileVectors / kLineVectors<S>;  // lines per feature of a full tile, a power of two

  Tiling(int64_t samples, int64_t features) : batch(samples) {
    while (width > 1 && (features * width * SNIPKERN_VECTOR_BYTES > kTileBytes || width / 2 * kLineSamples >= batch)) {
      width /= 2;
    }
  }

  int64_t samples() const { return width * kLineSamples; }
  int64_t tiles() const { return (batch + samples() - 1) / samples(); }

  int lines(int64_t tile) const {
    const int64_t wanted = std::min(samples(), batch - tile * samples());
    int count = 1;
    while (count * kLineSamples < wanted) count *= 2;
    return count;
  }

  int vectors(int64_t tile) const { return lines(tile) * kLineVectors<S>; }

  // Elements of a full tile, before a tile, and of the whole packed batch.
  int64_t tile_size(int64_t features) const { return width * kLineElements * features; }
  int64_t offset(int64_t tile, int64_t features) const { return tile * tile_size(features); }
  int64_t size(int64_t features) const { return offset(tiles(), features); }
};

// Whether each tile should be one thread's work: what that packs is then in its L2 when it multiplies, and no thread
// waits for another.
inline bool whole_tiles(int64_t tiles, int64_t threads) { return tiles % threads == 0 || tiles >= 4 * threads; }

// Lists cut into parts of nearly equal numbers of entries: the first list of `part`.
inline int64_t balanced_list(const int32_t* ptr, int64_t lists, int64_t parts, int64_t part) {
  if (part == parts) return lists;
  return std::lower_bound(ptr, ptr + lists, part_begin(ptr[lists], parts, part)) - ptr;
}

// Calls body with the number of lines as a constant: one instance per width that a tile of S can have.
template <typename S, typename Body>
inline void with_lines(int lines, const Body& body) {
  switch (lines) {
    case 1:
      return body(std::integral_constant<int, 1>{});
    case 2:
      return body(std::integral_constant<int, 2>{});
    case 4:
      return body(std::integral_constant<int, 4>{});
    default:
      return body(std::integral_constant<int, kTileVectors / kLineVectors<S>>{});
  }
}

// kLanes features of one line of samples, as tile elements: row `sample`, stride `features`. The first `tall` samples
// and `wide` features are there, zeros stand for the rest.
template <typename T>
inline __attribute__((always_inline)) void load_rows(const T* x, int64_t features, int64_t tall, int wide,
                                                     Vec<accumulator_t<T>>* rows) {
  constexpr int kN = kLanes<accumulator_t<T>>;
  if (tall >= kN && wide == kN) {
    SNIPKERN_UNROLL for (int i = 0; i < kN; ++i) rows[i] = widen(x + i * features);
  } else {
    for (int i = 0; i < kN; ++i) {
      rows[i] = i < tall ? widen_partial(x + i * features, wide) : Vec<accumulator_t<T>>{};
    }
  }
}

template <typename S, typename T>
inline __attribute__((always_inline)) void load_transposed(const T* x, int64_t features, int64_t tall, int wide,
                                                           Vec<accumulator_t<T>>* rows) {
  load_rows(x, features, tall, wide, rows);
  if constexpr (std::is_same_v<S, Pair>) {
    constexpr int kN = kLanes<float>;
    typedef Vec<uint32_t> Bits;
    Vec<float> second[kN];
    load_rows(x + kN * features, features, tall - kN, wide, second);
    SNIPKERN_UNROLL for (int i = 0; i < kN; ++i) rows[i] = (Vec<float>)(((Bits)rows[i] >> 16) | (Bits)second[i]);
  }
  transpose<accumulator_t<T>>(rows);
}

// Packs features [begin, end) of one tile of x [batch, features] to [feature][lines]; missing samples become zeros.
template <typename T, typename S>
SNIPKERN_NOINLINE void pack_tile(const T* x, const Tiling<S>& tiling, int64_t features, int64_t tile, int64_t begin,
                                 int64_t end, S* packed) {
  using A = accumulator_t<T>;
  constexpr int kN = kLanes<A>;
  const int64_t lines = tiling.lines(tile);
  for (int64_t feature = begin; feature < end; feature += kN) {
    const int wide = static_cast<int>(std::min<int64_t>(kN, end - feature));
    for (int64_t line = 0; line < lines; ++line) {
      const int64_t sample = tile * tiling.samples() + line * tiling.kLineSamples;
      A* to = reinterpret_cast<A*>(packed) + (feature * lines + line) * kN;
      Vec<A> rows[kN];
      load_transposed<S>(x + sample * features + feature, features, tiling.batch - sample, wide, rows);
      if (wide == kN) {
        SNIPKERN_UNROLL for (int i = 0; i < kN; ++i) store(to + i * lines * kN, rows[i]);
      } else {
        for (int i = 0; i < wide; ++i) store(to + i * lines * kN, rows[i]);
      }
    }
  }
}

// Packs a whole batch.
template <typename T, typename S>
void pack(const T* x, const Tiling<S>& tiling, int64_t features, S* packed, const TaskRunner& run) {
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
SNIPKERN_NOINLINE void unpack_group(const accumulator_t<T>* group, int64_t batch, int64_t outputs, int64_t sample,
                                    int64_t output, T* y) {
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

// to = first + the rows of rest [chains - 1, count], from `rest` on `stride` apart.
template <typename T>
void add_chains(const accumulator_t<T>* first, const accumulator_t<T>* rest, int64_t stride, int64_t chains,
                int64_t total, T* to, const TaskRunner& run) {
  using A = accumulator_t<T>;
  if (static_cast<const void*>(first) == to && chains == 1) return;
  const double work = static_cast<double>(chains) * total;
  const int64_t parts = task_count(work, 64);
  run_if_worth(run, work, parts, [&](int64_t part) {
    const int64_t last = part_begin(total, parts, part + 1);
    for (int64_t k = part_begin(total, parts, part); k < last; k += kLanes<A>) {
      const int count = static_cast<int>(std::min<int64_t>(kLanes<A>, last - k));
      Vec<A> sum = widen_partial(first + k, count);
      for (int64_t chain = 1; chain < chains; ++chain) sum += widen_partial(rest + (chain - 1) * stride + k, count);
      narrow_partial(to + k, sum, count);
    }
  });
}

}  // namespace
}  // namespace SNIPKERN_TIER
}  // namespace snipkern
