// Tiles of operands in shared memory, and the threads that fill and multiply them.
//
// A thread block multiplies a wide operand (128 or 64 samples, pixels or kept columns) by a narrow one (the rows or
// columns of a block, 16 to 64) and walks the depth, over which the products are summed, in steps of 64 bytes. Operands
// lie in shared memory as they lie in global memory, depth inside or outside, so that nothing is transposed on the way.
#pragma once

#include "cuda/dtype.cuh"

namespace snipkern::cuda {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / 32;
constexpr int kResident = 3;  // thread blocks of a multiprocessor that registers and shared memory must have room for

// Depth of one step: 32 16-bit elements, 16 floats, 8 doubles.
template <typename T>
inline constexpr int kDepth = 64 / static_cast<int>(sizeof(T));

enum class Inner { kDepth, kExtent };  // what is contiguous

// A tile of `kExtent` wide or narrow places by kDepth<T>. Lines are padded so that the eight rows of a matrix that
// ldmatrix reads, and the lanes of a fragment of floats, lie in different banks: by 16 bytes, or by 32 where lanes read
// floats one below the other.
template <typename T, int kExtentOf, Inner kInnerOf>
struct Tile {
  using Element = T;
  static constexpr int kExtent = kExtentOf;
  static constexpr Inner kInner = kInnerOf;
  static constexpr bool kDepthInner = kInner == Inner::kDepth;
  static constexpr int kLines = kDepthInner ? kExtent : kDepth<T>;
  static constexpr int kLine = kDepthInner ? kDepth<T> : kExtent;
  static constexpr int kPadding = (kDepthInner ? 16 : sizeof(T) == 4 ? 32 : 16) / static_cast<int>(sizeof(T));
  static constexpr int kStride = kLine + kPadding;
  static constexpr int kElements = kLines * kStride;

  __device__ static int at(int place, int depth) {
    return kDepthInner ? place * kStride + depth : depth * kStride + place;
  }
};

// How threads share a tile to fill it: 16-byte pieces of its lines where memory allows, single elements where not. A
// thread has one place within the lines, always the same, so what it needs to know of that place it asks once.
template <typename Tile>
struct Filling {
  using T = typename Tile::Element;
  static constexpr int kVectors = Tile::kLine / kVector<T>;  // in a line
  static constexpr int kStep = kThreads / kVectors;          // lines
  static constexpr int kPasses = (Tile::kLines + kStep - 1) / kStep;
  static constexpr int kElementStep = kThreads / Tile::kLine;
  static_assert(kThreads % Tile::kLine == 0 && Tile::kLines % kElementStep == 0);

  __device__ static int inner() { return static_cast<int>(threadIdx.x) % kVectors * kVector<T>; }
  __device__ static int line(int pass) { return static_cast<int>(threadIdx.x) / kVectors + pass * kStep; }
  // Where a tile is smaller than its threads could fill in one pass.
  __device__ static bool has(int pass) { return Tile::kLines % kStep == 0 || line(pass) < Tile::kLines; }

  __device__ static int element_inner() { return static_cast<int>(threadIdx.x) % Tile::kLine; }
  __device__ static int element_line(int pass) {
    return static_cast<int>(threadIdx.x) / Tile::kLine + pass * kElementStep;
  }
  static constexpr int kElementPasses = Tile::kLines / kElementStep;
};

}  // namespace snipkern::cuda
