// Images as slabs: [channel][row][column][samples], one vector of samples per entry, so that a
// weight is one broadcast and one FMA per output position; and the register tiles that walk them.
// No include guard: compiled once per tier and kernel file.

#include "cpu/simd.kernel.h"

namespace snipkern {
namespace SNIPKERN_TIER {
namespace {

// Positions of one register tile: 16 of 32 registers, or 12 of 16, leave room for the operands.
constexpr int kTileLimit = SNIPKERN_VECTOR_BYTES == 64 ? 16 : 12;

// A weight list: slab offsets of its taps, in vectors, and their values (null for a weight gradient).
template <typename A>
struct TapList {
  const A* values;
  const int32_t* offsets;
  int64_t count;
};

// A tile of positions in a buffer of vectors: sums to write or gradients to read.
template <typename A>
struct Tile {
  A* data;
  int64_t row, col;  // vectors between neighbouring positions
};

// A store that does not fetch the line it overwrites. For whole aligned vectors of outputs too large
// for the cache; finish_stores() before another thread may look.
template <typename A>
inline void store_past_cache(A* to, Vec<A> value) {
#if defined(__clang__)
  __builtin_nontemporal_store(value, reinterpret_cast<Vec<A>*>(to));
#elif defined(__x86_64__)
  typedef long long Bits __attribute__((vector_size(SNIPKERN_VECTOR_BYTES), may_alias));
#  if SNIPKERN_VECTOR_BYTES == 64
  __builtin_ia32_movntdq512(reinterpret_cast<Bits*>(to), (Bits)value);
#  elif SNIPKERN_VECTOR_BYTES == 32
  __builtin_ia32_movntdq256(reinterpret_cast<Bits*>(to), (Bits)value);
#  else
  __builtin_ia32_movntdq(reinterpret_cast<Bits*>(to), (Bits)value);
#  endif
#else
  store(to, value);
#endif
}

inline void finish_stores() {
#if defined(__x86_64__)
  __builtin_ia32_sfence();
#endif
}

// Reads `wide` neighbouring elements of `samples` samples, `pitch` elements apart: rows[i] holds
// element i of every sample. What is missing is zero.
template <typename T>
__attribute__((noinline)) void load_partial(const T* from, int64_t pitch, int samples, int wide,
                                            Vec<accumulator_t<T>>* rows) {
  using A = accumulator_t<T>;
  for (int i = 0; i < kLanes<A>; ++i) rows[i] = i < samples ? widen_partial(from + i * pitch, wide) : Vec<A>{};
  transpose<A>(rows);
}

template <typename T>
inline __attribute__((always_inline)) void load_whole(const T* from, int64_t pitch, Vec<accumulator_t<T>>* rows) {
  using A = accumulator_t<T>;
#pragma GCC unroll 16
  for (int i = 0; i < kLanes<A>; ++i) rows[i] = widen(from + i * pitch);
  transpose<A>(rows);
}

// Packs `count` neighbouring elements of one channel; map says where each goes, -1 for nowhere.
template <typename T>
void pack_run(const T* from, int64_t pitch, int samples, int64_t count, const int32_t* map, accumulator_t<T>* slab) {
  using A = accumulator_t<T>;
  constexpr int kN = kLanes<A>;
  Vec<A> rows[kN];
  int64_t i = 0;
  if (samples == kN) {
    for (; i + kN <= count; i += kN) {
      load_whole(from + i, pitch, rows);
#pragma GCC unroll 16
      for (int j = 0; j < kN; ++j) {
        if (map[i + j] >= 0) store(slab + static_cast<int64_t>(map[i + j]) * kN, rows[j]);
      }
    }
  }
  for (; i < count; i += kN) {
    const int wide = static_cast<int>(std::min<int64_t>(kN, count - i));
    load_partial(from + i, pitch, samples, wide, rows);
    for (int j = 0; j < wide; ++j) {
      if (map[i + j] >= 0) store(slab + static_cast<int64_t>(map[i + j]) * kN, rows[j]);
    }
  }
}

// Packs a band of all source channels of the samples from `sample` on.
template <typename T>
void pack_band(const ConvPlan& plan, const ConvBand& band, const T* source, int64_t sample, int samples,
               accumulator_t<T>* slab) {
  using A = accumulator_t<T>;
  constexpr int kN = kLanes<A>;
  int32_t* map = scratch<int32_t>(Slot::kPartial, plan.map_entries());
  int32_t* zeros = map + plan.map_entries() - plan.channel_stride;
  const int64_t zero_count = plan.map_band(band, map, zeros);
  const int64_t plane = plan.source_size[0] * plan.source_size[1];
  const int64_t height = band.source_end[0] - band.source_begin[0];
  const int64_t width = band.source_end[1] - band.source_begin[1];
  const bool whole_rows = width == plan.source_size[1];
  const int64_t runs = whole_rows ? 1 : height, run_length = whole_rows ? height * width : width;
  const int64_t first = band.source_begin[0] * plan.source_size[1] + band.source_begin[1];
  for (int64_t channel = 0; channel < plan.source_channels; ++channel) {
    const T* from = source + (sample * plan.source_channels + channel) * plane + first;
    A* to = slab + channel * plan.channel_stride * kN;
    for (int64_t r = 0; r < runs; ++r) {
      pack_run(from + r * plan.source_size[1], plan.source_channels * plane, samples, run_length, map + r * width, to);
    }
    for (int64_t i = 0; i < zero_count; ++i) store(to + static_cast<int64_t>(zeros[i]) * kN, Vec<A>{});
  }
}

// Packs height x width elements, `line` apart from row to row, as [height][width] vectors.
template <typename T>
void pack_window(const T* from, int64_t pitch, int64_t line, int samples, int64_t height, int64_t width,
                 accumulator_t<T>* packed) {
  using A = accumulator_t<T>;
  constexpr int kN = kLanes<A>;
  const bool whole_rows = width == line;
  const int64_t runs = whole_rows ? 1 : height, run_length = whole_rows ? height * width : width;
  for (int64_t r = 0; r < runs; ++r) {
    for (int64_t i = 0; i < run_length; i += kN) {
      const int wide = static_cast<int>(std::min<int64_t>(kN, run_length - i));
      Vec<A> rows[kN];
      if (samples == kN && wide == kN) {
        load_whole(from + r * line + i, pitch, rows);
      } else {
        load_partial(from + r * line + i, pitch, samples, wide, rows);
      }
      for (int j = 0; j < wide; ++j) store(packed + (r * width + i + j) * kN, rows[j]);
    }
  }
}

// Writes kLanes elements of `samples` samples.
template <typename T>
inline void store_samples(Vec<accumulator_t<T>>* rows, int64_t pitch, int samples, int wide, bool past_cache, T* to) {
  using A = accumulator_t<T>;
  constexpr int kN = kLanes<A>;
  transpose<A>(rows);
  if (samples == kN && wide == kN) {
    if constexpr (std::is_same_v<T, A>) {
      if (past_cache) {
        for (int s = 0; s < kN; ++s) store_past_cache<A>(to + s * pitch, rows[s]);
        return;
      }
    }
    for (int s = 0; s < kN; ++s) narrow(to + s * pitch, rows[s]);
  } else {
    for (int s = 0; s < samples; ++s) narrow_partial(to + s * pitch, rows[s], wide);
  }
}

// The inverse of pack_window. `past_cache` streams whole lines to memory where they are aligned.
template <typename T>
void unpack_window(const accumulator_t<T>* packed, int64_t pitch, int64_t line, int samples, int64_t height,
                   int64_t width, bool past_cache, T* to) {
  using A = accumulator_t<T>;
  constexpr int kN = kLanes<A>;
  const bool whole_rows = width == line;
  const int64_t runs = whole_rows ? 1 : height, run_length = whole_rows ? height * width : width;
  for (int64_t r = 0; r < runs; ++r) {
    T* run = to + r * line;
    const bool aligned = (reinterpret_cast<uintptr_t>(run) | pitch * sizeof(T)) % SNIPKERN_VECTOR_BYTES == 0;
    const A* from = packed + r * width * kN;
    int64_t i = 0;
    for (; i + kN <= run_length; i += kN) {
      Vec<A> rows[kN];
      for (int j = 0; j < kN; ++j) rows[j] = load(from + (i + j) * kN);
      store_samples(rows, pitch, samples, kN, past_cache && aligned, run + i);
    }
    if (i < run_length) {
      Vec<A> rows[kN] = {};
      for (int j = 0; j < run_length - i; ++j) rows[j] = load(from + (i + j) * kN);
      store_samples(rows, pitch, samples, static_cast<int>(run_length - i), false, run + i);
    }
  }
}

// Sums every tap of the list at kRows x kCols positions.
template <typename A, int kRows, int kCols>
void sum_tile(const TapList<A>& list, const A* x, int64_t row_stride, A bias, const Tile<A>& out) {
  constexpr int kN = kLanes<A>;
  Vec<A> sums[kRows * kCols];
  for (int i = 0; i < kRows * kCols; ++i) sums[i] = broadcast<Vec<A>>(bias);
  for (int64_t k = 0; k < list.count; ++k) {
    const Vec<A> w = broadcast<Vec<A>>(list.values[k]);
    const A* at = x + static_cast<int64_t>(list.offsets[k]) * kN;
    for (int r = 0; r < kRows; ++r) {
      for (int c = 0; c < kCols; ++c) {
        sums[r * kCols + c] = multiply_add<A>(w, load(at + (r * row_stride + c) * kN), sums[r * kCols + c]);
      }
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int c = 0; c < kCols; ++c) store(out.data + (r * out.row + c * out.col) * kN, sums[r * kCols + c]);
  }
}

// Adds to dots[k], a vector per tap of the list, the products of the gradient at kRows x kCols
// positions with what the tap reads there. The gradient stays in registers.
template <typename A, int kRows, int kCols>
void dot_tile(const TapList<A>& list, const A* x, int64_t row_stride, const Tile<const A>& grad, A* dots) {
  constexpr int kN = kLanes<A>;
  constexpr int kChains = kRows * kCols < 4 ? kRows * kCols : SNIPKERN_VECTOR_BYTES == 64 ? 4 : 2;
  Vec<A> dy[kRows * kCols];
  for (int i = 0; i < kRows * kCols; ++i) {
    dy[i] = load(grad.data + (i / kCols * grad.row + i % kCols * grad.col) * kN);
  }
  for (int64_t k = 0; k < list.count; ++k) {
    const A* at = x + static_cast<int64_t>(list.offsets[k]) * kN;
    Vec<A> chains[kChains] = {};
    for (int i = 0; i < kRows * kCols; ++i) {
      const Vec<A> read = load(at + (i / kCols * row_stride + i % kCols) * kN);
      chains[i % kChains] = multiply_add<A>(dy[i], read, chains[i % kChains]);
    }
    for (int i = 1; i < kChains; ++i) chains[0] += chains[i];
    store(dots + k * kN, load(dots + k * kN) + chains[0]);
  }
}

// The tiles by [rows][columns]: rows are powers of two.
template <typename A>
struct TileTable {
  decltype(&sum_tile<A, 1, 1>) sum[kTileLimit + 1][kTileLimit + 1] = {};
  decltype(&dot_tile<A, 1, 1>) dot[kTileLimit + 1][kTileLimit + 1] = {};

  constexpr TileTable() { fill<1, 1>(); }

  template <int kRows, int kCols>
  constexpr void fill() {
    if constexpr (kRows * kCols <= kTileLimit) {
      sum[kRows][kCols] = &sum_tile<A, kRows, kCols>;
      dot[kRows][kCols] = &dot_tile<A, kRows, kCols>;
      fill<kRows, kCols + 1>();
    } else if constexpr (kCols > 1) {
      fill<2 * kRows, 1>();
    }
  }
};
template <typename A>
constexpr TileTable<A> kTiles{};

// Calls body(row, column, rows, columns) for tiles that cover the positions [begin, end).
template <typename Body>
inline void for_each_tile(const ConvPlan& plan, const int64_t (&begin)[2], const int64_t (&end)[2], const Body& body) {
  int64_t rows = plan.tile[0];
  for (int64_t row = begin[0]; row < end[0]; row += rows) {
    while (rows > end[0] - row) rows /= 2;
    for (int64_t col = begin[1]; col < end[1]; col += plan.tile[1]) {
      body(row, col, rows, std::min(plan.tile[1], end[1] - col));
    }
  }
}

}  // namespace
}  // namespace SNIPKERN_TIER
}  // namespace snipkern
