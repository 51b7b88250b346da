// See sddmm_csr.h. Compiled once per ISA tier.
//
// Every sum over the batch has one order, however tiles are handed to threads: within a tile by lanes, then over the
// tiles of a chain, then over the chains. A chain is one thread's work and needs sums of its own, so that there are
// few.

#include "cpu/spmm_csr.kernel.h"

namespace snipkern {
namespace SNIPKERN_TIER {
namespace {

// One tile's share of one kept weight's sum, lane by lane.
template <int kLines, typename S, typename V>
inline __attribute__((always_inline)) V dot_lanes(const V* left, const S* b, int64_t feature) {
  constexpr int kVectors = kLines * kLineVectors<S>;
  V right[kVectors];
  load_feature<kLines>(b, feature, right);
  V low = left[0] * right[0], high{};
  SNIPKERN_UNROLL for (int v = 1; v < kVectors; ++v) {
    V& half = v % 2 ? high : low;
    half += left[v] * right[v];
  }
  return low + high;
}

// One tile's share of the sums of rows [begin, end), stored or, unless it is the first, added: for each kept weight
// kVectors products, and for every kLanes weights one joint horizontal sum. What is left of a row waits for that of
// the next ones.
template <int kLines, typename S, typename A, typename I>
void dot_rows(const SddmmCsr& call, const I* index, const S* a, const S* b, int64_t begin, int64_t end, bool first,
              A* sums) {
  constexpr int kN = kLanes<A>;
  alignas(64) Vec<A> waiting[kN];
  int64_t place[kN];
  int count = 0;
  const auto settle = [&] {
    for (int i = count; i < kN; ++i) waiting[i] = Vec<A>{};
    const Vec<A> sum = sum_rows<A>(waiting);
    if (count == kN) {
      SNIPKERN_UNROLL for (int i = 0; i < kN; ++i) sums[place[i]] = first ? sum[i] : sums[place[i]] + sum[i];
    } else {
      for (int i = 0; i < count; ++i) sums[place[i]] = first ? sum[i] : sums[place[i]] + sum[i];
    }
    count = 0;
  };
  for (int64_t row = begin; row < end; ++row) {
    Vec<A> left[kLines * kLineVectors<S>];
    load_feature<kLines>(a, row, left);
    const int64_t stop = call.ptr[row + 1];
    int64_t k = call.ptr[row];
    for (; k + kN <= stop; k += kN) {
      Vec<A> dots[kN];
      SNIPKERN_UNROLL for (int i = 0; i < kN; ++i) { dots[i] = dot_lanes<kLines>(left, b, index[k + i]); }
      const Vec<A> sum = sum_rows<A>(dots);
      store(sums + k, first ? sum : load(sums + k) + sum);
    }
    for (; k < stop; ++k) {
      waiting[count] = dot_lanes<kLines>(left, b, index[k]);
      place[count] = k;
      if (++count == kN) settle();
    }
  }
  settle();
}

// One tile's share of the sums of whole rows [begin, end), stored or added.
template <int kLines, typename S, typename A>
void add_rows(const S* a, int64_t begin, int64_t end, bool first, A* sums) {
  constexpr int kN = kLanes<A>;
  for (int64_t row = begin; row < end; row += kN) {
    const int count = static_cast<int>(std::min<int64_t>(kN, end - row));
    Vec<A> rows[kN] = {};
    for (int i = 0; i < count; ++i) {
      Vec<A> samples[kLines * kLineVectors<S>];
      load_feature<kLines>(a, row + i, samples);
      SNIPKERN_UNROLL for (const Vec<A>& vector : samples) rows[i] += vector;
    }
    const Vec<A> sum = sum_rows<A>(rows);
    narrow_partial(sums + row, first ? sum : widen_partial(sums + row, count) + sum, count);
  }
}

// Sums over the batch, complete or of one chain.
template <typename A>
struct Sums {
  A* values;  // [nnz]
  A* bias;    // [rows] or null
};

template <typename S, typename A>
void add_tile(const SddmmCsr& call, const Tiling<S>& tiling, const S* a, const S* b, int64_t tile, int64_t begin,
              int64_t end, bool first, const Sums<A>& sums) {
  with_lines<S>(tiling.lines(tile), [&](auto lines) {
    constexpr int kLines = decltype(lines)::value;
    with_index(call.index, [&](auto* index) { dot_rows<kLines>(call, index, a, b, begin, end, first, sums.values); });
    if (sums.bias != nullptr) add_rows<kLines>(a, begin, end, first, sums.bias);
  });
}

// All sums of packed operands, one chain per tile. Few parts, each of which goes over all tiles: a part reads every
// tile of b anew, and where that does not fit into L2 it is slow.
template <typename S, typename A>
void add_tiles(const SddmmCsr& call, const Tiling<S>& tiling, const S* a, const S* b, const Sums<A>& sums,
               const TaskRunner& run) {
  const double work = static_cast<double>(call.batch) * call.ptr[call.rows];
  const int64_t parts = task_count(work, 2 * run.threads());
  run_if_worth(run, work, parts, [&](int64_t part) {
    const int64_t begin = balanced_list(call.ptr, call.rows, parts, part);
    const int64_t end = balanced_list(call.ptr, call.rows, parts, part + 1);
    for (int64_t tile = 0; tile < tiling.tiles(); ++tile) {
      add_tile(call, tiling, a + tiling.offset(tile, call.rows), b + tiling.offset(tile, call.cols), tile, begin, end,
               tile == 0, sums);
    }
  });
}

// The gradients of values, of the bias and, where they are asked for, of the input.
template <typename T>
void gradients(const SddmmCsr& call, const SpmmCsr* input_grad, const TaskRunner& run) {
  using A = accumulator_t<T>;
  using S = tile_t<T>;
  // Enough for the threads of most machines. More would need memory for their sums; and so would fewer, for a layer of
  // many weights and a small batch: they get at most twice what the packed operands take.
  constexpr int64_t kMostChains = 16;
  const int64_t nnz = call.ptr[call.rows], each = nnz + call.rows;
  const Tiling<S> tiling(call.batch, std::max(call.rows, call.cols));
  const int64_t tiles = tiling.tiles();
  const T *dy = static_cast<const T*>(call.a), *x = static_cast<const T*>(call.b);
  Sums<A> sums;
  if constexpr (std::is_same_v<T, A>) {
    sums = {static_cast<A*>(call.values), static_cast<A*>(call.bias)};
  } else {
    sums.values = scratch<A>(Slot::kSums, each);
    sums.bias = call.bias != nullptr ? sums.values + nnz : nullptr;
  }
  A* rest = nullptr;
  int64_t chains = 1;
  const auto finish = [&] {
    add_chains(sums.values, rest, each, chains, nnz, static_cast<T*>(call.values), run);
    if (sums.bias != nullptr) {
      add_chains(sums.bias, chains > 1 ? rest + nnz : nullptr, each, chains, call.rows, static_cast<T*>(call.bias),
                 run);
    }
  };
  if (tiles == 0) {
    std::fill(sums.values, sums.values + nnz, A{});
    if (sums.bias != nullptr) std::fill(sums.bias, sums.bias + call.rows, A{});
    return finish();
  }
  const A* ordered = input_grad != nullptr ? ordered_values<T>(*input_grad, run) : nullptr;
  const bool roomy = std::min(tiles, kMostChains) * nnz <= 2 * call.batch * (call.rows + call.cols);
  if (roomy && (tiles > kMostChains || whole_tiles(tiles, run.threads()))) {
    chains = std::min(tiles, kMostChains);
    rest = scratch<A>(Slot::kPartial, (chains - 1) * each);
    const double work = static_cast<double>(call.batch) * nnz * (input_grad != nullptr ? 2 : 1);
    run_if_worth(run, work, chains, [&](int64_t chain) {
      const int64_t begin = part_begin(tiles, chains, chain), end = part_begin(tiles, chains, chain + 1);
      A* partial = rest + (chain - 1) * each;
      const Sums<A> own = chain == 0 ? sums : Sums<A>{partial, sums.bias != nullptr ? partial + nnz : nullptr};
      S* packed_dy = scratch<S>(Slot::kPackedGradient, tiling.tile_size(call.rows));
      S* packed_x = scratch<S>(Slot::kPackedInput, tiling.tile_size(call.cols));
      for (int64_t tile = begin; tile < end; ++tile) {
        pack_tile(dy, tiling, call.rows, tile, 0, call.rows, packed_dy);
        if (input_grad != nullptr) multiply_tile<T>(*input_grad, tiling, ordered, packed_dy, tile);
        pack_tile(x, tiling, call.cols, tile, 0, call.cols, packed_x);
        add_tile(call, tiling, packed_dy, packed_x, tile, 0, call.rows, tile == begin, own);
      }
    });
    return finish();
  }
  S* packed_dy = scratch<S>(Slot::kPackedGradient, tiling.size(call.rows));
  S* packed_x = scratch<S>(Slot::kPackedInput, tiling.size(call.cols));
  pack(dy, tiling, call.rows, packed_dy, run);
  if (input_grad != nullptr) multiply<T>(*input_grad, tiling, ordered, packed_dy, run);
  pack(x, tiling, call.cols, packed_x, run);
  add_tiles(call, tiling, packed_dy, packed_x, sums, run);
  finish();
}

template <typename T>
void sddmm_csr(const SddmmCsr& call, const TaskRunner& run) {
  gradients<T>(call, nullptr, run);
}

template <typename T>
void spmm_csr_backward(const SddmmCsr& value_grad, const SpmmCsr& input_grad, const TaskRunner& run) {
  gradients<T>(value_grad, &input_grad, run);
}

}  // namespace
}  // namespace SNIPKERN_TIER
}  // namespace snipkern
