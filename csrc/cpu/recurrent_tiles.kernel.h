// What forward and backward of recurrent layers share: a tile's samples at one step, packed as [feature][samples], and
// the products with such tiles. Compiled once per ISA tier.

#include "cpu/tiles.kernel.h"
// Builds on the vectors that tiles bring.
#include "cpu/activations.kernel.h"

namespace snipkern {
namespace SNIPKERN_TIER {
namespace {

// A weight in the accumulation type.
template <typename A>
struct Lists {
  const A* values;
  const int32_t* ptr;
  IndexList index;
  int64_t rows, cols;

  bool there() const { return ptr != nullptr; }
};

template <typename A>
struct Weights {
  Lists<A> ih, hh, hr;
};

// Writes to `wide` [nnz of all] where values are not of the accumulation type already.
template <typename T>
Weights<accumulator_t<T>> wide_weights(const RecurrentCsr& call) {
  using A = accumulator_t<T>;
  const auto lists = [](const RecurrentWeight& weight, const A* values) {
    return Lists<A>{values, weight.ptr, weight.index, weight.rows, weight.cols};
  };
  if constexpr (std::is_same_v<T, A>) {
    return {lists(call.ih, static_cast<const A*>(call.ih.values)),
            lists(call.hh, static_cast<const A*>(call.hh.values)),
            lists(call.hr, static_cast<const A*>(call.hr.values))};
  } else {
    A* wide = scratch<A>(Slot::kValues, call.ih.nnz() + call.hh.nnz() + call.hr.nnz());
    const auto widened = [&](const RecurrentWeight& weight) {
      const A* values = wide;
      convert(static_cast<const T*>(weight.values), 0, weight.nnz(), wide);
      wide += weight.nnz();
      return lists(weight, values);
    };
    const Lists<A> ih = widened(call.ih), hh = widened(call.hh);
    return {ih, hh, widened(call.hr)};
  }
}

// The lanes of one tile, step by step in the order that the layer takes.
struct TileSteps {
  const RecurrentCsr& call;
  int64_t tile, samples;

  TileSteps(const RecurrentCsr& call, int64_t tile) : call(call), tile(tile), samples(recurrent_samples(call.batch)) {}

  int64_t step(int64_t place) const { return call.reverse ? call.steps - 1 - place : place; }
  int64_t first_sample() const { return tile * samples; }

  // Samples of the tile that the step at this place has; none outside of the sequence.
  int64_t active(int64_t place) const {
    if (place < 0 || place >= call.steps) return 0;
    const int64_t t = step(place);
    const int64_t left = call.starts[t + 1] - call.starts[t] - first_sample();
    return std::max<int64_t>(0, std::min(samples, left));
  }

  // The tile's first row of the step at this place.
  int64_t row(int64_t place) const { return call.starts[step(place)] + first_sample(); }

  template <typename A>
  A* saved(int64_t place) const {
    const int64_t features = cell_saved(call.cell) * call.hidden;
    return static_cast<A*>(call.saved) + (tile * call.steps + step(place)) * features * samples;
  }
};

// Calls body with the cell as a constant.
template <typename Body>
void with_cell(Cell cell, const Body& body) {
  switch (cell) {
    case Cell::kLstm:
      return body(std::integral_constant<Cell, Cell::kLstm>{});
    case Cell::kGru:
      return body(std::integral_constant<Cell, Cell::kGru>{});
    case Cell::kRnnTanh:
      return body(std::integral_constant<Cell, Cell::kRnnTanh>{});
    case Cell::kRnnRelu:
      return body(std::integral_constant<Cell, Cell::kRnnRelu>{});
  }
}

// Multiply-adds of all rows, a gate counting as 16.
inline double recurrent_work(const RecurrentCsr& call) {
  const double row = call.ih.nnz() + call.hh.nnz() + call.hr.nnz() + 16.0 * call.ih.rows;
  return static_cast<double>(call.starts[call.steps]) * row;
}

// Packs `count` rows [count, features] as the first lanes of [features][samples]; zeros are the others.
template <typename T>
SNIPKERN_NOINLINE void pack_lanes(const T* rows, int64_t features, int64_t count, int64_t samples,
                                  accumulator_t<T>* to) {
  using A = accumulator_t<T>;
  constexpr int kN = kLanes<A>;
  for (int64_t feature = 0; feature < features; feature += kN) {
    const int wide = static_cast<int>(std::min<int64_t>(kN, features - feature));
    for (int64_t lane = 0; lane < samples; lane += kN) {
      Vec<A> block[kN];
      load_rows(rows + lane * features + feature, features, count - lane, wide, block);
      transpose<A>(block);
      for (int i = 0; i < wide; ++i) store(to + (feature + i) * samples + lane, block[i]);
    }
  }
}

// Writes the first `count` lanes of [features][samples] to rows [count, features].
template <typename T>
SNIPKERN_NOINLINE void unpack_lanes(const accumulator_t<T>* from, int64_t features, int64_t count, int64_t samples,
                                    T* rows) {
  using A = accumulator_t<T>;
  constexpr int kN = kLanes<A>;
  for (int64_t feature = 0; feature < features; feature += kN) {
    const int wide = static_cast<int>(std::min<int64_t>(kN, features - feature));
    for (int64_t lane = 0; lane < count; lane += kN) {
      Vec<A> block[kN];
      SNIPKERN_UNROLL for (int i = 0; i < kN; ++i) {
        block[i] = i < wide ? load(from + (feature + i) * samples + lane) : Vec<A>{};
      }
      transpose<A>(block);
      const int tall = static_cast<int>(std::min<int64_t>(kN, count - lane));
      for (int i = 0; i < tall; ++i) narrow_partial(rows + (lane + i) * features + feature, block[i], wide);
    }
  }
}

// Lanes [begin, end) from rows [batch, features] of which the tile begins at `first`: samples that join.
template <typename T>
SNIPKERN_NOINLINE void join_lanes(const void* rows, int64_t first, int64_t features, int64_t begin, int64_t end,
                                  int64_t samples, accumulator_t<T>* to) {
  for (int64_t lane = begin; lane < end; ++lane) {
    const T* from = static_cast<const T*>(rows) + (first + lane) * features;
    for (int64_t feature = 0; feature < features; ++feature) to[feature * samples + lane] = widen_one(from + feature);
  }
}

// The same to rows: samples that have no further steps.
template <typename T>
SNIPKERN_NOINLINE void leave_lanes(const accumulator_t<T>* from, int64_t first, int64_t features, int64_t begin,
                                   int64_t end, int64_t samples, void* rows) {
  using A = accumulator_t<T>;
  for (int64_t lane = begin; lane < end; ++lane) {
    T* to = static_cast<T*>(rows) + (first + lane) * features;
    for (int64_t feature = 0; feature < features; ++feature) {
      narrow_partial(to + feature, broadcast<Vec<A>>(from[feature * samples + lane]), 1);
    }
  }
}

// Zeros in the lanes from `count` on, whatever stood there: no sum over lanes may see it.
template <typename A>
SNIPKERN_NOINLINE void clear_lanes(A* values, int64_t features, int64_t count, int64_t samples) {
  if (count == samples) return;
  for (int64_t feature = 0; feature < features; ++feature) {
    std::fill(values + feature * samples + count, values + (feature + 1) * samples, A{});
  }
}

// Calls body with how many vectors of a line of samples are held in registers at a time; a line is of 16 samples at
// least.
template <typename A, typename Body>
inline void with_vectors(int64_t samples, const Body& body) {
  const int64_t vectors = samples / kLanes<A>;
  if constexpr (kLanes<A> >= 16) {
    if (vectors == 1) return body(std::integral_constant<int, 1>{});
  }
  if constexpr (kLanes<A> >= 8) {
    if (vectors == 2) return body(std::integral_constant<int, 2>{});
  }
  body(std::integral_constant<int, 4>{});
}

// sums += row of the weight times x [cols][samples], for kVectors vectors of samples.
template <int kVectors, typename A, typename I>
inline __attribute__((always_inline)) void add_row(const Lists<A>& weight, const I* index, int64_t row, const A* x,
                                                   int64_t samples, Vec<A>* sums) {
  constexpr int kSets = kVectors == 1 ? 4 : kVectors == 2 ? 2 : 1;
  Vec<A> sets[kSets][kVectors] = {};
  const auto add = [&](int64_t k, Vec<A>* set) __attribute__((always_inline)) {
    const Vec<A> value = broadcast<Vec<A>>(weight.values[k]);
    const A* from = x + index[k] * samples;
    SNIPKERN_UNROLL for (int v = 0; v < kVectors; ++v) {
      set[v] = multiply_add<A>(value, load(from + v * kLanes<A>), set[v]);
    }
  };
  const int64_t end = weight.ptr[row + 1];
  int64_t k = weight.ptr[row];
  for (; k + kSets <= end; k += kSets) {
    SNIPKERN_UNROLL for (int s = 0; s < kSets; ++s) add(k + s, sets[s]);
  }
  for (; k < end; ++k) add(k, sets[0]);
  SNIPKERN_UNROLL for (int v = 0; v < kVectors; ++v) {
    SNIPKERN_UNROLL for (int s = 0; s < kSets; ++s) sums[v] += sets[s][v];
  }
}

// to [rows][samples] = bias + weight times x; no bias: zeros.
template <typename A>
SNIPKERN_NOINLINE void multiply_lanes(const Lists<A>& weight, const A* bias, const A* x, int64_t samples, A* to) {
  with_vectors<A>(samples, [&](auto vectors) {
    constexpr int kVectors = decltype(vectors)::value;
    with_index(weight.index, [&](auto* index) {
      for (int64_t lane = 0; lane < samples; lane += kVectors * kLanes<A>) {
        for (int64_t row = 0; row < weight.rows; ++row) {
          Vec<A> sums[kVectors];
          SNIPKERN_UNROLL for (int v = 0; v < kVectors; ++v) sums[v] =
              broadcast<Vec<A>>(bias == nullptr ? A{} : bias[row]);
          add_row<kVectors>(weight, index, row, x + lane, samples, sums);
          SNIPKERN_UNROLL for (int v = 0; v < kVectors; ++v) store(to + row * samples + lane + v * kLanes<A>, sums[v]);
        }
      }
    });
  });
}

// to [cols][samples] += transposed weight times y [rows][samples]. It goes over rows, adding to lines that stay in L1,
// rather than over columns, whose sums would read all over y. A row's lines are distinct, so some of them are read
// before the first is written.
template <int kVectors, typename A, typename I>
void add_transposed(const Lists<A>& weight, const I* index, const A* y, int64_t samples, A* to) {
  constexpr int kTogether = kVectors == 1 ? 4 : kVectors == 2 ? 2 : 1;
  constexpr int kN = kLanes<A>;
  const A* const values = weight.values;
  const int32_t* const ptr = weight.ptr;
  const int64_t rows = weight.rows;
  for (int64_t row = 0; row < rows; ++row) {
    Vec<A> from[kVectors];
    SNIPKERN_UNROLL for (int v = 0; v < kVectors; ++v) from[v] = load(y + row * samples + v * kN);
    const int64_t end = ptr[row + 1];
    int64_t k = ptr[row];
    for (; k + kTogether <= end; k += kTogether) {
      A* lines[kTogether];
      Vec<A> sums[kTogether][kVectors];
      SNIPKERN_UNROLL for (int i = 0; i < kTogether; ++i) {
        lines[i] = to + index[k + i] * samples;
        const Vec<A> value = broadcast<Vec<A>>(values[k + i]);
        SNIPKERN_UNROLL for (int v = 0; v < kVectors; ++v) {
          sums[i][v] = multiply_add<A>(value, from[v], load(lines[i] + v * kN));
        }
      }
      SNIPKERN_UNROLL for (int i = 0; i < kTogether; ++i) {
        SNIPKERN_UNROLL for (int v = 0; v < kVectors; ++v) store(lines[i] + v * kN, sums[i][v]);
      }
    }
    for (; k < end; ++k) {
      A* const line = to + index[k] * samples;
      const Vec<A> value = broadcast<Vec<A>>(values[k]);
      SNIPKERN_UNROLL for (int v = 0; v < kVectors; ++v) {
        store(line + v * kN, multiply_add<A>(value, from[v], load(line + v * kN)));
      }
    }
  }
}

template <typename A>
SNIPKERN_NOINLINE void add_transposed(const Lists<A>& weight, const A* y, int64_t samples, A* to) {
  with_vectors<A>(samples, [&](auto vectors) {
    with_index(weight.index, [&](auto* index) {
      constexpr int kVectors = decltype(vectors)::value;
      for (int64_t lane = 0; lane < samples; lane += kVectors * kLanes<A>) {
        add_transposed<kVectors>(weight, index, y + lane, samples, to + lane);
      }
    });
  });
}

}  // namespace
}  // namespace SNIPKERN_TIER
}  // namespace snipkern
