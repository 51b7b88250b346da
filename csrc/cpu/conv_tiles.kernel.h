// Register tiles that walk a slab (see conv_plan.h): positions of the patches,
// times the channels of a strip, which share one list of taps. No include
// guard: compiled once per tier and kernel file.

#include "cpu/conv_pack.kernel.h"

namespace snipkern {
namespace SNIPKERN_TIER {
namespace {

// Most channels of a strip, a power of two; these take turns at reading a
// vector of the slab once.
constexpr int kStripLimit = SNIPKERN_VECTOR_BYTES == 64 ? 8 : 4;

// Positions in a buffer of vectors: sums to write or gradients to read, of each
// channel of a strip.
template <typename A>
struct Tile {
  A* data;
  int64_t row, col;  // vectors between neighbouring positions
  int64_t channel;   // and between channels
};

// Sums every tap of the list at kRows x kCols positions, for kStrip channels,
// on top of their bias, or of what `out` holds where that is null.
template <typename A, int kStrip, int kRows, int kCols>
void sum_tile(const TapList<A>& list, const A* x, int64_t row_stride, const A* bias, const Tile<A>& out) {
  constexpr int kN = kLanes<A>;
  Vec<A> sums[kStrip][kRows * kCols];
  SNIPKERN_UNROLL for (int s = 0; s < kStrip; ++s) {
    SNIPKERN_UNROLL for (int i = 0; i < kRows * kCols; ++i) {
      const A* at = out.data + (s * out.channel + i / kCols * out.row + i % kCols * out.col) * kN;
      sums[s][i] = bias != nullptr ? broadcast<Vec<A>>(bias[s]) : load(at);
    }
  }
  for (int64_t k = 0; k < list.count; ++k) {
    const A* at = x + static_cast<int64_t>(list.offsets[k]) * kN;
    Vec<A> read[kStrip == 1 ? 1 : kRows * kCols];
    if constexpr (kStrip > 1) {
      SNIPKERN_UNROLL for (int i = 0; i < kRows * kCols; ++i) read[i] =
          load(at + (i / kCols * row_stride + i % kCols) * kN);
    }
    SNIPKERN_UNROLL for (int s = 0; s < kStrip; ++s) {
      const Vec<A> w = broadcast<Vec<A>>(list.values[s * list.pitch + k]);
      SNIPKERN_UNROLL for (int i = 0; i < kRows * kCols; ++i) {
        if constexpr (kStrip == 1) {
          sums[s][i] = multiply_add<A>(w, load(at + (i / kCols * row_stride + i % kCols) * kN), sums[s][i]);
        } else {
          sums[s][i] = multiply_add<A>(w, read[i], sums[s][i]);
        }
      }
    }
  }
  SNIPKERN_UNROLL for (int s = 0; s < kStrip; ++s) {
    SNIPKERN_UNROLL for (int i = 0; i < kRows * kCols; ++i) {
      store(out.data + (s * out.channel + i / kCols * out.row + i % kCols * out.col) * kN, sums[s][i]);
    }
  }
}

// Adds to dots[k][s], vectors, the products of channel s's gradient at kRows x
// kCols positions with what tap k reads there. The gradient stays in registers.
template <typename A, int kStrip, int kRows, int kCols>
void dot_tile(const TapList<A>& list, const A* x, int64_t row_stride, const Tile<const A>& grad, A* dots) {
  constexpr int kN = kLanes<A>;
  constexpr int kSize = kRows * kCols;
  // Enough independent sums to hide the FMA's latency.
  constexpr int kWanted = (SNIPKERN_VECTOR_BYTES == 64 ? 4 : 2) / kStrip;
  constexpr int kChains = kWanted < 1 ? 1 : kSize < kWanted ? kSize : kWanted;
  Vec<A> dy[kStrip][kSize];
  SNIPKERN_UNROLL for (int s = 0; s < kStrip; ++s) {
    SNIPKERN_UNROLL for (int i = 0; i < kSize; ++i) {
      dy[s][i] = load(grad.data + (s * grad.channel + i / kCols * grad.row + i % kCols * grad.col) * kN);
    }
  }
  for (int64_t k = 0; k < list.count; ++k) {
    const A* at = x + static_cast<int64_t>(list.offsets[k]) * kN;
    Vec<A> chains[kStrip][kChains] = {};
    SNIPKERN_UNROLL for (int i = 0; i < kSize; ++i) {
      const Vec<A> read = load(at + (i / kCols * row_stride + i % kCols) * kN);
      SNIPKERN_UNROLL for (int s = 0; s < kStrip; ++s) chains[s][i % kChains] =
          multiply_add<A>(dy[s][i], read, chains[s][i % kChains]);
    }
    SNIPKERN_UNROLL for (int s = 0; s < kStrip; ++s) {
      SNIPKERN_UNROLL for (int i = 1; i < kChains; ++i) chains[s][0] += chains[s][i];
      A* sum = dots + (k * kStrip + s) * kN;
      store(sum, load(sum) + chains[s][0]);
    }
  }
}

// The tiles of a strip by [rows][columns]: rows are powers of two.
template <template <typename, int, int, int> class Make, typename A, int kStrip>
struct TileTable {
  static constexpr int kLimit = kTileLimit / kStrip;
  typename Make<A, kStrip, 1, 1>::Function at[kLimit + 1][kLimit + 1] = {};

  constexpr TileTable() { fill<1, 1>(); }

  template <int kRows, int kCols>
  constexpr void fill() {
    if constexpr (kRows * kCols <= kLimit) {
      at[kRows][kCols] = Make<A, kStrip, kRows, kCols>::kFunction;
      fill<kRows, kCols + 1>();
    } else if constexpr (kCols > 1) {
      fill<2 * kRows, 1>();
    }
  }
};

// Two tables, so that a file compiles what it calls only.
template <typename A, int kStrip, int kRows, int kCols>
struct SumTile {
  using Function = decltype(&sum_tile<A, kStrip, 1, 1>);
  static constexpr Function kFunction = &sum_tile<A, kStrip, kRows, kCols>;
};
template <typename A, int kStrip>
constexpr TileTable<SumTile, A, kStrip> kSumTiles{};

template <typename A, int kStrip, int kRows, int kCols>
struct DotTile {
  using Function = decltype(&dot_tile<A, kStrip, 1, 1>);
  static constexpr Function kFunction = &dot_tile<A, kStrip, kRows, kCols>;
};
template <typename A, int kStrip>
constexpr TileTable<DotTile, A, kStrip> kDotTiles{};

// Calls body(row, column, rows, columns) for tiles that cover the positions of
// a rectangle.
template <typename Body>
inline void for_each_tile(const ConvTile& tile, const ConvRect& rect, const Body& body) {
  int64_t rows = tile.rows;
  for (int64_t row = rect.begin[0]; row < rect.end[0]; row += rows) {
    while (rows > rect.end[0] - row) rows /= 2;
    for (int64_t col = rect.begin[1]; col < rect.end[1]; col += tile.cols) {
      body(row, col, rows, std::min(tile.cols, rect.end[1] - col));
    }
  }
}

}  // namespace
}  // namespace SNIPKERN_TIER
}  // namespace snipkern
