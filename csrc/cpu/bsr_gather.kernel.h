// Products with blocks, sums in registers: a strip of up to 8 outputs of one block row (or column) shares every load of
// an input. No include guard: compiled once per tier and kernel file.

#include "cpu/tiles.kernel.h"

namespace snipkern {
namespace SNIPKERN_TIER {
namespace {

// Vectors of samples that a strip of outputs holds sums of: together they fill half of the registers or less.
constexpr int strip_vectors(int outputs, int vectors) {
  constexpr int kSums = SNIPKERN_VECTOR_BYTES == 64 ? 16 : 8;
  const int most = outputs >= kSums ? 1 : kSums / outputs;
  const int fitting = most < 4 ? most : 4;
  return fitting < vectors ? fitting : vectors;
}

// The rows of entry `k` of the block columns' lists: their weights are `run` apart.
template <typename A>
struct BsrRows {
  const A* weight = nullptr;
  int64_t run = 0, first = 0, height = 0;

  BsrRows() = default;
  BsrRows(const BsrIndex& index, const A* values, int64_t k) {
    const int64_t block_row = index.row[k];
    height = index.height(block_row);
    first = block_row * index.block_height;
    run = index.run_length(block_row);
    weight = values + index.position(block_row, index.order[k]);
  }
};

// Adds the products of one list of blocks to sums [kOutputs][sums_stride], kVectors of which each output has here. The
// list is a block row and the outputs are `offset`, ... of its rows; with kTranspose a block column and its columns.
template <typename A, int kOutputs, int kVectors, bool kTranspose>
void gather_strip(const BsrIndex& index, const A* values, int64_t list, int64_t offset, const A* x, int64_t x_stride,
                  A* sums, int64_t sums_stride) {
  constexpr int kN = kLanes<A>;
  Vec<A> sum[kOutputs][kVectors];
  SNIPKERN_UNROLL for (int o = 0; o < kOutputs; ++o) {
    SNIPKERN_UNROLL for (int v = 0; v < kVectors; ++v) sum[o][v] = load(sums + o * sums_stride + v * kN);
  }
  const auto add = [&](const A* from, const A* weight, int64_t weight_stride) __attribute__((always_inline)) {
    Vec<A> input[kVectors];
    SNIPKERN_UNROLL for (int v = 0; v < kVectors; ++v) input[v] = load(from + v * kN);
    SNIPKERN_UNROLL for (int o = 0; o < kOutputs; ++o) {
      const Vec<A> w = broadcast<Vec<A>>(weight[o * weight_stride]);
      SNIPKERN_UNROLL for (int v = 0; v < kVectors; ++v) sum[o][v] = multiply_add<A>(w, input[v], sum[o][v]);
    }
  };
  if constexpr (kTranspose) {
    // The values of a block are a stretch here and a stretch there: those of the next block are asked for early.
    const int64_t end = index.col_ptr[list + 1];
    int64_t k = index.col_ptr[list];
    BsrRows<A> next = k < end ? BsrRows<A>(index, values + offset, k) : BsrRows<A>{};
    for (; k < end; ++k) {
      const BsrRows<A> block = next;
      if (k + 1 < end) next = BsrRows<A>(index, values + offset, k + 1);
      const A *from = x + block.first * x_stride, *weight = block.weight, *early = next.weight;
      for (int64_t r = 0; r < block.height; ++r, weight += block.run, early += next.run, from += x_stride) {
        __builtin_prefetch(early);
        add(from, weight, 1);
      }
    }
  } else {
    const int64_t run = index.run_length(list);
    const int32_t* col = index.col + index.ptr[list];
    const A* weight = values + index.start[list] + offset * run;
    const A* end = weight + run;
    if (index.block_width == 1) {
      for (; weight < end; ++weight) add(x + *col++ * x_stride, weight, run);
    } else {
      const int64_t block_stride = index.block_width * x_stride;
      while (weight < end) {
        const A* from = x + *col++ * block_stride;
        const A* stop = std::min(end, weight + index.block_width);
        for (; weight < stop; ++weight, from += x_stride) add(from, weight, run);
      }
    }
  }
  SNIPKERN_UNROLL for (int o = 0; o < kOutputs; ++o) {
    SNIPKERN_UNROLL for (int v = 0; v < kVectors; ++v) store(sums + o * sums_stride + v * kN, sum[o][v]);
  }
}

// As many outputs as a band has, cut into strips; vectors [v, v + kVectors) of each.
template <typename A, int kVectors, bool kTranspose>
void gather_strips(const BsrIndex& index, const A* values, int64_t list, int64_t offset, int64_t count, const A* x,
                   int64_t x_stride, A* sums, int64_t sums_stride) {
  int64_t done = 0;
  while (done < count) {
    const auto strip = [&](auto outputs) {
      constexpr int kOutputs = decltype(outputs)::value;
      gather_strip<A, kOutputs, kVectors, kTranspose>(index, values, list, offset + done, x, x_stride,
                                                      sums + done * sums_stride, sums_stride);
      done += kOutputs;
    };
    const int64_t left = count - done;
    if constexpr (kVectors <= strip_vectors(8, kTileVectors)) {
      if (left >= 8) {
        strip(std::integral_constant<int, 8>{});
        continue;
      }
    }
    if constexpr (kVectors <= strip_vectors(4, kTileVectors)) {
      if (left >= 4) {
        strip(std::integral_constant<int, 4>{});
        continue;
      }
    }
    if (left >= 2) {
      strip(std::integral_constant<int, 2>{});
    } else {
      strip(std::integral_constant<int, 1>{});
    }
  }
}

// Outputs [offset, offset + count) of one list: all strips for a few vectors of samples, then the next ones, so that
// what a strip reads is still in L1 for those below it.
template <typename A, bool kTranspose>
SNIPKERN_NOINLINE void gather_band(const BsrIndex& index, const A* values, int64_t list, int64_t offset, int64_t count,
                                   const A* x, int vectors, A* sums) {
  constexpr int kN = kLanes<A>;
  const int64_t stride = vectors * kN;
  const int step = strip_vectors(count >= 8 ? 8 : count >= 4 ? 4 : 2, vectors);
  for (int v = 0; v < vectors; v += step) {
    const auto strips = [&](auto width) {
      gather_strips<A, decltype(width)::value, kTranspose>(index, values, list, offset, count, x + v * kN, stride,
                                                           sums + v * kN, stride);
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

}  // namespace
}  // namespace SNIPKERN_TIER
}  // namespace snipkern
