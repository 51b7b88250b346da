// Products with blocks, inputs in registers: a strip of up to 8 inputs of one block row (or column) is read once and
// added to the outputs of all its blocks. For blocks that have many inputs for each output. No include guard: compiled
// once per tier and kernel file.

#include "cpu/bsr_gather.kernel.h"

namespace snipkern {
namespace SNIPKERN_TIER {
namespace {

// Bytes of outputs that are added to at a time: they stay in L2, and the values are read in order.
constexpr int64_t kScatterBytes = 1 << 20;

// Entries of one list of blocks: with kTranspose a block row's, whose rows are the inputs; else a block column's.
template <bool kTranspose>
struct ScatterLists {
  const BsrIndex& index;

  int64_t count() const { return kTranspose ? index.block_rows() : index.block_cols(); }
  int64_t inputs(int64_t list) const { return kTranspose ? index.height(list) : index.width(list); }
  int64_t input_block() const { return kTranspose ? index.block_height : index.block_width; }
  int64_t output_block() const { return kTranspose ? index.block_width : index.block_height; }
  const int32_t* ptr() const { return kTranspose ? index.ptr : index.col_ptr; }
  const int32_t* output() const { return kTranspose ? index.col : index.row; }  // of each entry
};

// Adds the products of inputs `offset`, ... of a list with entries [k, end) whose outputs lie before block `limit`;
// returns the first entry that is left. `y` is where output 0 would be.
template <typename A, int kInputs, int kVectors, bool kTranspose>
int64_t scatter_strip(const BsrIndex& index, const A* values, int64_t list, int64_t offset, const A* x, int64_t k,
                      int64_t end, int64_t limit, int64_t stride, A* y) {
  constexpr int kN = kLanes<A>;
  Vec<A> input[kInputs][kVectors];
  SNIPKERN_UNROLL for (int i = 0; i < kInputs; ++i) {
    SNIPKERN_UNROLL for (int v = 0; v < kVectors; ++v) input[i][v] = load(x + i * stride + v * kN);
  }
  const auto add = [&](A* to, const A* weight, int64_t weight_stride) __attribute__((always_inline)) {
    Vec<A> sum[kVectors];
    SNIPKERN_UNROLL for (int v = 0; v < kVectors; ++v) sum[v] = load(to + v * kN);
    SNIPKERN_UNROLL for (int i = 0; i < kInputs; ++i) {
      const Vec<A> w = broadcast<Vec<A>>(weight[i * weight_stride]);
      SNIPKERN_UNROLL for (int v = 0; v < kVectors; ++v) sum[v] = multiply_add<A>(w, input[i][v], sum[v]);
    }
    SNIPKERN_UNROLL for (int v = 0; v < kVectors; ++v) store(to + v * kN, sum[v]);
  };
  if constexpr (kTranspose) {
    const int64_t run = index.run_length(list);
    const A* weight = values + index.position(list, k) + offset * run;
    if (index.block_width == 1) {
      for (; k < end && index.col[k] < limit; ++k) add(y + index.col[k] * stride, weight++, run);
    } else {
      for (; k < end && index.col[k] < limit; ++k) {
        A* to = y + index.col[k] * index.block_width * stride;
        const int64_t width = index.width(index.col[k]);
        for (int64_t c = 0; c < width; ++c, to += stride) add(to, weight++, run);
      }
    }
  } else {
    for (; k < end && index.row[k] < limit; ++k) {
      const int64_t block_row = index.row[k], run = index.run_length(block_row), height = index.height(block_row);
      const A* weight = values + index.position(block_row, index.order[k]) + offset;
      A* to = y + block_row * index.block_height * stride;
      for (int64_t r = 0; r < height; ++r, weight += run, to += stride) add(to, weight, 1);
    }
  }
  return k;
}

template <typename A, int kVectors, bool kTranspose>
int64_t scatter_strips(const BsrIndex& index, const A* values, int64_t list, const A* x, int64_t k, int64_t end,
                       int64_t limit, int64_t stride, A* y) {
  const int64_t inputs = ScatterLists<kTranspose>{index}.inputs(list);
  int64_t left = k;
  int64_t done = 0;
  while (done < inputs) {
    const auto strip = [&](auto count) {
      constexpr int kInputs = decltype(count)::value;
      left = scatter_strip<A, kInputs, kVectors, kTranspose>(index, values, list, done, x + done * stride, k, end,
                                                             limit, stride, y);
      done += kInputs;
    };
    if constexpr (kVectors <= strip_vectors(8, kTileVectors)) {
      if (inputs - done >= 8) {
        strip(std::integral_constant<int, 8>{});
        continue;
      }
    }
    if constexpr (kVectors <= strip_vectors(4, kTileVectors)) {
      if (inputs - done >= 4) {
        strip(std::integral_constant<int, 4>{});
        continue;
      }
    }
    if (inputs - done >= 2) {
      strip(std::integral_constant<int, 2>{});
    } else {
      strip(std::integral_constant<int, 1>{});
    }
  }
  return left;
}

// All products of one packed tile with outputs of blocks before `limit`; `cursor` [lists] are the entries to begin
// with, and afterwards those to go on with.
template <typename A, bool kTranspose>
SNIPKERN_NOINLINE void scatter_lists(const BsrIndex& index, const A* values, const A* x, int vectors, int64_t limit,
                                     int32_t* cursor, A* y) {
  constexpr int kN = kLanes<A>;
  const ScatterLists<kTranspose> lists{index};
  const int64_t stride = vectors * kN;
  const int step = strip_vectors(lists.input_block() >= 8 ? 8 : lists.input_block() >= 4 ? 4 : 2, vectors);
  for (int64_t list = 0; list < lists.count(); ++list) {
    const int64_t k = cursor[list], end = lists.ptr()[list + 1];
    if (k == end || lists.output()[k] >= limit) continue;
    const A* from = x + list * lists.input_block() * stride;
    for (int v = 0; v < vectors; v += step) {
      const auto strips = [&](auto width) {
        cursor[list] = static_cast<int32_t>(scatter_strips<A, decltype(width)::value, kTranspose>(
            index, values, list, from + v * kN, k, end, limit, stride, y + v * kN));
      };
      if (step == 1) {
        strips(std::integral_constant<int, 1>{});
      } else if (step == 2) {
        strips(std::integral_constant<int, 2>{});
      } else {
        strips(std::integral_constant<int, 4>{});
      }
    }
  }
}

}  // namespace
}  // namespace SNIPKERN_TIER
}  // namespace snipkern
