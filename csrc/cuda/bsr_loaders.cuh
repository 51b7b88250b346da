// Loaders of row-major matrices and of values for bsr_product.cuh: 16-byte pieces without a detour through registers
// where sizes and addresses allow (`vectors`), single elements where not.
#pragma once

#include "cuda/async_copy.cuh"
#include "cuda/bsr_lists.cuh"
#include "cuda/bsr_tile.cuh"

namespace snipkern::cuda {

template <typename T>
__device__ __forceinline__ void copy_16_or_zeros(T* shared, const T* base, int64_t offset, bool real) {
  copy_async_16(shared, real ? base + offset : base, real ? 16 : 0);
}

// Places are samples [first, batch) of x [batch, features]; the depth is a list of its features.
template <typename TileOf>
struct GatheredSamples {
  using Tile = TileOf;
  using T = typename Tile::Element;
  using Fill = Filling<Tile>;
  static_assert(Tile::kDepthInner);

  const T* x;
  int64_t first, batch;
  int32_t features;
  KeptList list;
  Walk walk;
  bool vectors;
  int32_t inner, feature;  // this thread's place in the depth, and its feature there in the next step

  __device__ GatheredSamples(const T* x, int64_t first, int64_t batch, int32_t features, const KeptList& list,
                             Walk walk, bool vectors)
      : x(x), first(first), batch(batch), features(features), list(list), walk(walk), vectors(vectors) {
    inner = vectors ? Fill::inner() : Fill::element_inner();
    feature = walk.begin + inner < walk.end ? list[walk.begin + inner] : 0;
  }

  __device__ void load(T* tile, int32_t step) {
    const int32_t k = walk.begin + step * kDepth<T> + inner;
    if (vectors) {
#pragma unroll
      for (int pass = 0; pass < Fill::kPasses; ++pass) {
        if (!Fill::has(pass)) continue;
        const int64_t sample = first + Fill::line(pass);
        const bool real = sample < batch && k < walk.end;
        copy_16_or_zeros(tile + Tile::at(Fill::line(pass), inner), x, sample * features + feature, real);
      }
    } else {
#pragma unroll 4
      for (int pass = 0; pass < Fill::kElementPasses; ++pass) {
        const int64_t sample = first + Fill::element_line(pass);
        const bool real = sample < batch && k < walk.end;
        tile[Tile::at(Fill::element_line(pass), inner)] = real ? x[sample * features + feature] : round_to<T>(0);
      }
    }
    // Asked for one step ahead: the copies of the next step need not wait for it.
    if (k + kDepth<T> < walk.end) feature = list[k + kDepth<T>];
  }
};

// Places are rows of a block row from `begin` on; the depth is the run of its kept columns.
template <typename TileOf>
struct RunValues {
  using Tile = TileOf;
  using T = typename Tile::Element;
  using Fill = Filling<Tile>;
  static_assert(Tile::kDepthInner);

  const T* values;
  BlockRow row;
  int32_t begin;
  Walk walk;
  bool vectors;

  __device__ RunValues(const T* values, const BlockIndex&, const BlockRow& row, int32_t begin, Walk walk, bool vectors)
      : values(values), row(row), begin(begin), walk(walk), vectors(vectors) {}

  __device__ void load(T* tile, int32_t step) {
    const int32_t depth = walk.begin + step * kDepth<T>;
    if (vectors) {
#pragma unroll
      for (int pass = 0; pass < Fill::kPasses; ++pass) {
        if (!Fill::has(pass)) continue;
        const int32_t line = begin + Fill::line(pass), k = depth + Fill::inner();
        const bool real = line < row.extent && k < walk.end;
        copy_16_or_zeros(tile + Tile::at(Fill::line(pass), Fill::inner()), values, row.start + line * row.run + k,
                         real);
      }
    } else {
#pragma unroll 4
      for (int pass = 0; pass < Fill::kElementPasses; ++pass) {
        const int32_t line = begin + Fill::element_line(pass), k = depth + Fill::element_inner();
        const bool real = line < row.extent && k < walk.end;
        tile[Tile::at(Fill::element_line(pass), Fill::element_inner())] =
            real ? values[row.start + line * row.run + k] : round_to<T>(0);
      }
    }
  }
};

// Places are columns of a block column from `begin` on; the depth is the list of its kept rows.
template <typename TileOf>
struct ColumnValues {
  using Tile = TileOf;
  using T = typename Tile::Element;
  using Fill = Filling<Tile>;
  static_assert(!Tile::kDepthInner);

  const T* values;
  const BlockIndex& index;
  BlockColumn column;
  int32_t begin;
  Walk walk;
  bool vectors;
  int32_t next[Fill::kPasses];  // where this thread's values of the next step begin

  __device__ ColumnValues(const T* values, const BlockIndex& index, const BlockColumn& column, int32_t begin, Walk walk,
                          bool vectors)
      : values(values), index(index), column(column), begin(begin), walk(walk), vectors(vectors) {
    if (vectors) find(walk.begin);
  }

  __device__ void find(int32_t depth) {
#pragma unroll
    for (int pass = 0; pass < Fill::kPasses; ++pass) {
      const int32_t k = depth + Fill::line(pass);
      next[pass] = k < walk.end ? column.position(index, k) : 0;
    }
  }

  __device__ void load(T* tile, int32_t step) {
    const int32_t depth = walk.begin + step * kDepth<T>;
    if (vectors) {
      const int32_t place = begin + Fill::inner();
#pragma unroll
      for (int pass = 0; pass < Fill::kPasses; ++pass) {
        if (!Fill::has(pass)) continue;
        const bool real = place < column.extent && depth + Fill::line(pass) < walk.end;
        copy_16_or_zeros(tile + Tile::at(Fill::inner(), Fill::line(pass)), values, next[pass] + place, real);
      }
      find(depth + kDepth<T>);
    } else {
      const int32_t place = begin + Fill::element_inner();
#pragma unroll 4
      for (int pass = 0; pass < Fill::kElementPasses; ++pass) {
        const int32_t k = depth + Fill::element_line(pass);
        const bool real = place < column.extent && k < walk.end;
        tile[Tile::at(Fill::element_inner(), Fill::element_line(pass))] =
            real ? values[column.position(index, k) + place] : round_to<T>(0);
      }
    }
  }
};

// Places are features of x [batch, features] from `begin` on in a list; the depth is samples [first, last).
template <typename TileOf>
struct SampleDepth {
  using Tile = TileOf;
  using T = typename Tile::Element;
  using Fill = Filling<Tile>;
  static_assert(!Tile::kDepthInner);

  const T* x;
  int64_t first, last;
  int32_t features;
  bool vectors;
  int32_t inner, feature;
  bool listed;

  template <typename List>
  __device__ SampleDepth(const T* x, int64_t first, int64_t last, int32_t features, const List& list, int32_t begin,
                         bool vectors)
      : x(x), first(first), last(last), features(features), vectors(vectors) {
    inner = vectors ? Fill::inner() : Fill::element_inner();
    listed = begin + inner < list.length;
    feature = listed ? list[begin + inner] : 0;
  }

  __device__ void load(T* tile, int32_t step) {
    const int64_t depth = first + static_cast<int64_t>(step) * kDepth<T>;
    if (vectors) {
#pragma unroll
      for (int pass = 0; pass < Fill::kPasses; ++pass) {
        if (!Fill::has(pass)) continue;
        const int64_t sample = depth + Fill::line(pass);
        copy_16_or_zeros(tile + Tile::at(inner, Fill::line(pass)), x, sample * features + feature,
                         listed && sample < last);
      }
    } else {
#pragma unroll 4
      for (int pass = 0; pass < Fill::kElementPasses; ++pass) {
        const int64_t sample = depth + Fill::element_line(pass);
        const bool real = listed && sample < last;
        tile[Tile::at(inner, Fill::element_line(pass))] = real ? x[sample * features + feature] : round_to<T>(0);
      }
    }
  }
};

}  // namespace snipkern::cuda
