// The products of two tiles: on tensor cores for 16-bit types and, where permitted, for floats rounded to tf32; by
// fused multiply-adds for float and double. All have the same shape: `step` adds the product of two tiles, and `each`
// tells which places of the wide and the narrow tile a thread's sums belong to.
#pragma once

#include "cuda/bsr_tile.cuh"
#include "cuda/tensor_core.cuh"

namespace snipkern::cuda {

// Warps share the wide tile, each takes all of the narrow one. d of mma: two neighbours in rows g and g + 8.
template <int kWide, int kNarrow>
struct WarpSums {
  static constexpr int kWideBlocks = kWide / (16 * kWarps), kNarrowBlocks = kNarrow / 8;
  float sums[kWideBlocks][kNarrowBlocks][4] = {};

  __device__ static int lane() { return static_cast<int>(threadIdx.x) % 32; }
  __device__ static int wide_begin(int block) {
    return (static_cast<int>(threadIdx.x) / 32 * kWideBlocks + block) * 16;
  }

  template <typename WideTile, typename NarrowTile, typename Body>
  __device__ void each(const Body& body) const {
#pragma unroll
    for (int i = 0; i < kWideBlocks; ++i) {
#pragma unroll
      for (int j = 0; j < kNarrowBlocks; ++j) {
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          body(wide_begin(i) + lane() / 4 + k / 2 * 8, j * 8 + lane() % 4 * 2 + k % 2, sums[i][j][k]);
        }
      }
    }
  }
};

// T is __half or __nv_bfloat16.
template <typename T, int kWide, int kNarrow>
struct HalfMath : WarpSums<kWide, kNarrow> {
  using Element = T;
  using Sums = WarpSums<kWide, kNarrow>;
  static constexpr int kWidth = kWide, kHeight = kNarrow;

  template <typename WideTile, typename NarrowTile>
  __device__ void step(const T* wide, const T* narrow) {
    const int lane = Sums::lane(), row = lane % 8, matrix = lane / 8;
#pragma unroll
    for (int depth = 0; depth < kDepth<T>; depth += 16) {
      // Matrices of a: places 0 and 8 at the lower depth, then both at the higher.
      uint32_t a[Sums::kWideBlocks][4];
#pragma unroll
      for (int i = 0; i < Sums::kWideBlocks; ++i) {
        const int place = Sums::wide_begin(i) + matrix % 2 * 8, at = depth + matrix / 2 * 8;
        if constexpr (WideTile::kDepthInner) {
          ldmatrix_x4(a[i], wide + WideTile::at(place + row, at));
        } else {
          ldmatrix_x4_trans(a[i], wide + WideTile::at(place, at + row));
        }
      }
      // Two b at a time: the lower and the higher depth of the first eight places, then of the next.
#pragma unroll
      for (int j = 0; j < Sums::kNarrowBlocks; j += 2) {
        uint32_t pair[4];
        const int place = (j + matrix / 2) * 8, at = depth + matrix % 2 * 8;
        if constexpr (NarrowTile::kDepthInner) {
          ldmatrix_x4(pair, narrow + NarrowTile::at(place + row, at));
        } else {
          ldmatrix_x4_trans(pair, narrow + NarrowTile::at(place, at + row));
        }
        const uint32_t first[2] = {pair[0], pair[1]}, second[2] = {pair[2], pair[3]};
#pragma unroll
        for (int i = 0; i < Sums::kWideBlocks; ++i) {
          mma_m16n8k16(this->sums[i][j], a[i], first, T{});
          mma_m16n8k16(this->sums[i][j + 1], a[i], second, T{});
        }
      }
    }
  }
};

template <int kWide, int kNarrow>
struct Tf32Math : WarpSums<kWide, kNarrow> {
  using Element = float;
  using Sums = WarpSums<kWide, kNarrow>;
  static constexpr int kWidth = kWide, kHeight = kNarrow;

  template <typename WideTile, typename NarrowTile>
  __device__ void step(const float* wide, const float* narrow) {
    const int place = Sums::lane() / 4, column = Sums::lane() % 4;
#pragma unroll
    for (int depth = 0; depth < kDepth<float>; depth += 8) {
      uint32_t a[Sums::kWideBlocks][4];
#pragma unroll
      for (int i = 0; i < Sums::kWideBlocks; ++i) {
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          const int at = Sums::wide_begin(i) + place + k % 2 * 8;
          a[i][k] = to_tf32(wide[WideTile::at(at, depth + column + k / 2 * 4)]);
        }
      }
#pragma unroll
      for (int j = 0; j < Sums::kNarrowBlocks; ++j) {
        uint32_t b[2];
#pragma unroll
        for (int k = 0; k < 2; ++k) b[k] = to_tf32(narrow[NarrowTile::at(j * 8 + place, depth + column + k * 4)]);
#pragma unroll
        for (int i = 0; i < Sums::kWideBlocks; ++i) mma_m16n8k8_tf32(this->sums[i][j], a[i], b);
      }
    }
  }
};

// Which of a tile's places a thread multiplies, where `kOwners` threads share them, and how it reads them: with the
// depth inside, vectors along the depth of every kOwners-th place; else vectors of neighbouring places.
template <typename Tile, int kOwners>
struct Share {
  using T = typename Tile::Element;
  static constexpr int kPlaces = Tile::kExtent / kOwners;
  static constexpr int kGroup = Tile::kDepthInner ? 1 : kPlaces < kVector<T> ? kPlaces : kVector<T>;

  __device__ static int place(int owner, int i) {
    return i / kGroup * (kGroup * kOwners) + owner * kGroup + i % kGroup;
  }

  // Elements of depth [depth, depth + kVector<T>).
  __device__ static void read(T (&to)[kPlaces][kVector<T>], const T* tile, int owner, int depth) {
    if constexpr (Tile::kDepthInner) {
#pragma unroll
      for (int i = 0; i < kPlaces; ++i) load_vector<kVector<T>>(to[i], tile + Tile::at(place(owner, i), depth));
    } else {
#pragma unroll
      for (int k = 0; k < kVector<T>; ++k) {
#pragma unroll
        for (int i = 0; i < kPlaces; i += kGroup) {
          T group[kGroup];
          load_vector<kGroup>(group, tile + Tile::at(place(owner, i), depth + k));
#pragma unroll
          for (int j = 0; j < kGroup; ++j) to[i + j][k] = group[j];
        }
      }
    }
  }
};

// T is float or double. 16 threads share the wide tile and 8 the narrow one; a warp takes 8 x 4 of them.
template <typename T, int kWide, int kNarrow>
struct FmaMath {
  using Element = T;
  static constexpr int kWidth = kWide, kHeight = kNarrow;
  static constexpr int kWideOwners = 16, kNarrowOwners = 8;
  static constexpr int kWidePlaces = kWide / kWideOwners, kNarrowPlaces = kNarrow / kNarrowOwners;
  T sums[kWidePlaces][kNarrowPlaces] = {};

  __device__ static int wide_owner() {
    return static_cast<int>(threadIdx.x) / 32 % 2 * 8 + static_cast<int>(threadIdx.x) % 8;
  }
  __device__ static int narrow_owner() {
    return static_cast<int>(threadIdx.x) / 64 * 4 + static_cast<int>(threadIdx.x) % 32 / 8;
  }

  template <typename WideTile, typename NarrowTile>
  __device__ void step(const T* wide, const T* narrow) {
#pragma unroll 2
    for (int depth = 0; depth < kDepth<T>; depth += kVector<T>) {
      T a[kWidePlaces][kVector<T>], b[kNarrowPlaces][kVector<T>];
      Share<WideTile, kWideOwners>::read(a, wide, wide_owner(), depth);
      Share<NarrowTile, kNarrowOwners>::read(b, narrow, narrow_owner(), depth);
#pragma unroll
      for (int k = 0; k < kVector<T>; ++k) {
#pragma unroll
        for (int i = 0; i < kWidePlaces; ++i) {
#pragma unroll
          for (int j = 0; j < kNarrowPlaces; ++j) sums[i][j] += a[i][k] * b[j][k];
        }
      }
    }
  }

  template <typename WideTile, typename NarrowTile, typename Body>
  __device__ void each(const Body& body) const {
#pragma unroll
    for (int i = 0; i < kWidePlaces; ++i) {
#pragma unroll
      for (int j = 0; j < kNarrowPlaces; ++j) {
        body(Share<WideTile, kWideOwners>::place(wide_owner(), i),
             Share<NarrowTile, kNarrowOwners>::place(narrow_owner(), j), sums[i][j]);
      }
    }
  }
};

}  // namespace snipkern::cuda
