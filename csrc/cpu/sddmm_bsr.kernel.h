// See sddmm_bsr.h. No include guard: compiled once per tier, with spmm_bsr.kernel.h.

#include "cpu/spmm_bsr.kernel.h"

namespace snipkern {
namespace SNIPKERN_TIER {
namespace {

// Samples whose products are added up lane by lane before the lanes are.
constexpr int64_t kDotSamples = 256;
// Bytes of the list's operand that are read again and again: half of a core's L2.
constexpr int64_t kDotBytes = 1 << 20;

// Tiles of one width of both packed operands: the one whose features a list of blocks shares (rows of W; for block
// columns its columns), and the one whose features it lists.
template <typename A>
struct DotPanel {
  const A *fixed, *listed;          // the first tile
  int64_t fixed_step, listed_step;  // from one tile to the next
  int64_t tiles, stride;            // elements of a feature in a tile
};

// Listed features, as offsets in a tile, and where their products with the first of the shared ones belong.
template <typename A>
struct DotGroup {
  int count = 0;
  int64_t offset[kLanes<A>], place[kLanes<A>];
};

// Dot products of kFixed features with kLanes / kFixed of a group: lane [fixed][listed], transposed [listed][fixed].
template <typename A, int kFixed, bool kTranspose>
inline __attribute__((always_inline)) Vec<A> dot_pairs(const DotPanel<A>& panel, const A* left, const int64_t* listed) {
  constexpr int kN = kLanes<A>, kListed = kN / kFixed;
  const int64_t stride = panel.stride;
  Vec<A> sum[kListed][kFixed];
  SNIPKERN_UNROLL for (int l = 0; l < kListed; ++l) {
    SNIPKERN_UNROLL for (int f = 0; f < kFixed; ++f) sum[l][f] = Vec<A>{};
  }
  const A* from[kListed];
  SNIPKERN_UNROLL for (int l = 0; l < kListed; ++l) from[l] = panel.listed + listed[l];
  for (int64_t tile = 0, right = 0; tile < panel.tiles; ++tile, left += panel.fixed_step, right += panel.listed_step) {
    for (int64_t at = 0; at < stride; at += kN) {
      Vec<A> row[kFixed];
      SNIPKERN_UNROLL for (int f = 0; f < kFixed; ++f) row[f] = load(left + f * stride + at);
      SNIPKERN_UNROLL for (int l = 0; l < kListed; ++l) {
        const Vec<A> other = load(from[l] + right + at);
        SNIPKERN_UNROLL for (int f = 0; f < kFixed; ++f) sum[l][f] = multiply_add<A>(row[f], other, sum[l][f]);
      }
    }
  }
  Vec<A> pairs[kN];
  SNIPKERN_UNROLL for (int l = 0; l < kListed; ++l) {
    SNIPKERN_UNROLL for (int f = 0; f < kFixed; ++f) pairs[kTranspose ? l * kFixed + f : f * kListed + l] = sum[l][f];
  }
  return sum_rows<A>(pairs);
}

template <typename A, int kCount>
inline __attribute__((always_inline)) void put(A* to, const A* from, int count, bool first) {
  if (count == kCount && first) {
    std::memcpy(to, from, kCount * sizeof(A));
  } else {
    for (int i = 0; i < count; ++i) to[i] = first ? from[i] : to[i] + from[i];
  }
}

// A group's products with fixed features [begin, end) of its list; `step` is how far apart their values are.
template <typename A, int kFixed, bool kTranspose>
void dot_strip(const DotPanel<A>& panel, const DotGroup<A>& group, int64_t feature, int64_t fixed, int64_t step,
               bool first, A* sums) {
  constexpr int kN = kLanes<A>, kListed = kN / kFixed;
  const A* left_tile = panel.fixed + (feature + fixed) * panel.stride;
  for (int done = 0; done < group.count; done += kListed) {
    alignas(64) A pairs[kN];
    store(pairs, dot_pairs<A, kFixed, kTranspose>(panel, left_tile, group.offset + done));
    const int left = std::min(kListed, group.count - done);
    if constexpr (kTranspose) {  // the fixed features are columns, whose values are neighbours
      for (int l = 0; l < left; ++l)
        put<A, kFixed>(sums + group.place[done + l] + fixed, pairs + l * kFixed, kFixed, first);
    } else {  // so are those of the listed features
      SNIPKERN_UNROLL for (int f = 0; f < kFixed; ++f) {
        put<A, kListed>(sums + group.place[done] + (fixed + f) * step, pairs + f * kListed, left, first);
      }
    }
  }
}

template <typename A, bool kTranspose>
void dot_group(const DotPanel<A>& panel, DotGroup<A>& group, int64_t feature, int64_t features, int64_t step,
               bool first, A* sums) {
  constexpr int kMost = kLanes<A> >= 8 ? 4 : 2;
  for (int i = group.count; i < kLanes<A>; ++i) group.offset[i] = group.offset[0];
  int64_t fixed = 0;
  for (; fixed + kMost <= features; fixed += kMost) {
    dot_strip<A, kMost, kTranspose>(panel, group, feature, fixed, step, first, sums);
  }
  for (; fixed + 2 <= features; fixed += 2) {
    dot_strip<A, 2, kTranspose>(panel, group, feature, fixed, step, first, sums);
  }
  if (fixed < features) dot_strip<A, 1, kTranspose>(panel, group, feature, fixed, step, first, sums);
  group.count = 0;
}

// Blocks [k, end) of one block row.
template <typename A>
void dot_block_row(const DotPanel<A>& panel, const BsrIndex& index, int64_t block_row, int64_t k, int64_t end,
                   bool first, A* sums) {
  const int64_t run = index.run_length(block_row), height = index.height(block_row);
  const int64_t feature = block_row * index.block_height;
  int64_t place = index.position(block_row, k);
  DotGroup<A> group;
  for (; k < end; ++k) {
    const int64_t width = index.width(index.col[k]), column = index.col[k] * index.block_width;
    for (int64_t c = 0; c < width; ++c) {
      group.offset[group.count] = (column + c) * panel.stride;
      group.place[group.count] = place++;
      if (++group.count == kLanes<A>) dot_group<A, false>(panel, group, feature, height, run, first, sums);
    }
  }
  if (group.count > 0) dot_group<A, false>(panel, group, feature, height, run, first, sums);
}

// Blocks [k, end) of one block column's list.
template <typename A>
void dot_block_col(const DotPanel<A>& panel, const BsrIndex& index, int64_t block_col, int64_t k, int64_t end,
                   bool first, A* sums) {
  const int64_t feature = block_col * index.block_width, width = index.width(block_col);
  DotGroup<A> group;
  for (; k < end; ++k) {
    const int64_t block_row = index.row[k], run = index.run_length(block_row), height = index.height(block_row);
    int64_t place = index.position(block_row, index.order[k]);
    for (int64_t r = 0; r < height; ++r, place += run) {
      group.offset[group.count] = (block_row * index.block_height + r) * panel.stride;
      group.place[group.count] = place;
      if (++group.count == kLanes<A>) dot_group<A, true>(panel, group, feature, width, 1, first, sums);
    }
  }
  if (group.count > 0) dot_group<A, true>(panel, group, feature, width, 1, first, sums);
}

// Lists [begin, end). So many samples and listed features at a time that these stay in L2.
template <typename A, bool kTranspose>
void dot_lists(const BsrIndex& index, const Tiling<A>& tiling, const A* a, const A* b, int64_t begin, int64_t end,
               A* sums) {
  const int32_t *ptr = kTranspose ? index.col_ptr : index.ptr, *other = kTranspose ? index.row : index.col;
  const int64_t block = kTranspose ? index.block_height : index.block_width;
  const int64_t blocks = kTranspose ? index.block_rows() : index.block_cols();
  const int64_t fixed_features = kTranspose ? index.cols : index.rows;
  const int64_t listed_features = kTranspose ? index.rows : index.cols;
  const int64_t tiles = tiling.tiles(), section = std::max<int64_t>(1, kDotSamples / tiling.samples());
  for (int64_t tile = 0, count; tile < tiles; tile += count) {
    // The last tile can be narrower.
    const int vectors = tiling.vectors(tile);
    count = std::min(section, tiles - tile);
    while (tiling.vectors(tile + count - 1) != vectors) --count;
    DotPanel<A> panel{};
    panel.fixed = (kTranspose ? b : a) + tiling.offset(tile, fixed_features);
    panel.listed = (kTranspose ? a : b) + tiling.offset(tile, listed_features);
    panel.fixed_step = tiling.samples() * fixed_features;
    panel.listed_step = tiling.samples() * listed_features;
    panel.tiles = count;
    panel.stride = vectors * kLanes<A>;
    const int64_t bytes = count * panel.stride * static_cast<int64_t>(sizeof(A)) * block;
    const int64_t step = std::max<int64_t>(1, kDotBytes / bytes);
    for (int64_t first = 0; first < blocks; first += step) {
      const int64_t limit = std::min(blocks, first + step);
      for (int64_t list = begin; list < end; ++list) {
        const int32_t *from = other + ptr[list], *to = other + ptr[list + 1];
        if (first > 0) from = std::lower_bound(from, to, first);
        if (limit < blocks) to = std::lower_bound(from, to, limit);
        if (from == to) continue;
        if constexpr (kTranspose) {
          dot_block_col<A>(panel, index, list, from - other, to - other, tile == 0, sums);
        } else {
          dot_block_row<A>(panel, index, list, from - other, to - other, tile == 0, sums);
        }
      }
    }
  }
}

// The kept entries of a^T b from packed operands.
template <typename T>
void dot_blocks(const SddmmBsr& call, const Tiling<accumulator_t<T>>& tiling, const accumulator_t<T>* a,
                const accumulator_t<T>* b, const TaskRunner& run) {
  using A = accumulator_t<T>;
  const BsrIndex& index = call.index;
  const int64_t nnz = index.nnz();
  T* values = static_cast<T*>(call.values);
  A* sums;
  if constexpr (std::is_same_v<T, A>) {
    sums = values;
  } else {
    sums = scratch<A>(Slot::kSums, nnz);
  }
  if (call.batch == 0) std::fill(sums, sums + nnz, A{});
  // Low blocks: a group of their columns shares nothing but one row, a group of their rows shares all of its columns.
  const bool transpose = index.block_height < 4 && index.block_width > index.block_height;
  const int32_t* ptr = transpose ? index.col_ptr : index.ptr;
  const int64_t lists = transpose ? index.block_cols() : index.block_rows();
  const double work = static_cast<double>(call.batch) * nnz;
  const int64_t parts = task_count(work, 2 * run.threads());
  run_if_worth(run, work, parts, [&](int64_t part) {
    const int64_t begin = balanced_list(ptr, lists, parts, part), end = balanced_list(ptr, lists, parts, part + 1);
    transpose ? dot_lists<A, true>(index, tiling, a, b, begin, end, sums)
              : dot_lists<A, false>(index, tiling, a, b, begin, end, sums);
  });
  if constexpr (!std::is_same_v<T, A>) {
    const int64_t pieces = task_count(nnz, 64);
    run_if_worth(run, nnz, pieces, [&](int64_t piece) {
      convert(sums, part_begin(nnz, pieces, piece), part_begin(nnz, pieces, piece + 1), values);
    });
  }
}

// The sums of packed features over the batch; feature f is packed as number place[f], or f.
template <typename T>
void sum_samples(const Tiling<accumulator_t<T>>& tiling, const accumulator_t<T>* packed, int64_t features,
                 const int32_t* place, T* sums, const TaskRunner& run) {
  using A = accumulator_t<T>;
  constexpr int kN = kLanes<A>;
  const int64_t groups = (features + kN - 1) / kN;
  const double work = static_cast<double>(tiling.batch) * features / kN;
  const int64_t parts = std::min(std::max<int64_t>(groups, 1), task_count(work, 64));
  run_if_worth(run, work, parts, [&](int64_t part) {
    for (int64_t group = part_begin(groups, parts, part); group < part_begin(groups, parts, part + 1); ++group) {
      const int count = static_cast<int>(std::min<int64_t>(kN, features - group * kN));
      Vec<A> lanes[kN] = {};
      for (int64_t tile = 0; tile < tiling.tiles(); ++tile) {
        const int64_t stride = tiling.vectors(tile) * kN;
        for (int i = 0; i < count; ++i) {
          const int64_t feature = group * kN + i;
          const A* from = packed + tiling.offset(tile, features) + (place ? place[feature] : feature) * stride;
          for (int64_t at = 0; at < stride; at += kN) lanes[i] += load(from + at);
        }
      }
      narrow_partial(sums + group * kN, sum_rows<A>(lanes), count);
    }
  });
}

// The gradients of values, of the bias and, where they are asked for, of the input.
template <typename T>
void block_gradients(const SddmmBsr& call, const SpmmBsr* input_grad, const TaskRunner& run) {
  using A = accumulator_t<T>;
  const int64_t rows = call.index.rows, cols = call.index.cols;
  const Tiling<A> tiling(call.batch, std::max(rows, cols));
  A* a = scratch<A>(Slot::kPackedGradient, tiling.size(rows));
  A* b = scratch<A>(Slot::kPackedInput, tiling.size(cols));
  if (input_grad != nullptr) {
    multiply<T>(*input_grad, tiling, a, run);
  } else {
    pack_in_order(static_cast<const T*>(call.a), tiling, rows, call.index.row_place, a, run);
  }
  pack_in_order(static_cast<const T*>(call.b), tiling, cols, call.index.col_place, b, run);
  dot_blocks<T>(call, tiling, a, b, run);
  if (call.bias != nullptr) sum_samples<T>(tiling, a, rows, call.index.row_place, static_cast<T*>(call.bias), run);
}

template <typename T>
void sddmm_bsr(const SddmmBsr& call, const TaskRunner& run) {
  block_gradients<T>(call, nullptr, run);
}

template <typename T>
void spmm_bsr_backward(const SddmmBsr& value_grad, const SpmmBsr& input_grad, const TaskRunner& run) {
  block_gradients<T>(value_grad, &input_grad, run);
}

}  // namespace
}  // namespace SNIPKERN_TIER
}  // namespace snipkern
