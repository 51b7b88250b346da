// What a thread block reads of the index of a block-sparse weight.
//
// A block row is a dense matrix [height][run] over the columns that it keeps, in the order of its values. So kernels
// walk these columns in steps of one size, whatever the width of a block: narrow blocks cost no more steps than wide
// ones. A block column is a dense matrix [depth][width] over the rows that it keeps, though its values lie apart.
#pragma once

#include "cuda/bsr.h"
#include "cuda/platform.cuh"

namespace snipkern::cuda {

// Rows or columns that follow one another in blocks of `side`: only the last block may be cut.
struct KeptList {
  const int32_t* blocks;
  int32_t side, length;

  __device__ int32_t operator[](int32_t k) const {
    const uint32_t block = static_cast<uint32_t>(k) / static_cast<uint32_t>(side);
    return blocks[block] * side + (k - static_cast<int32_t>(block) * side);
  }
};

// Rows or columns from `first` on.
struct PlainList {
  int32_t first, length;

  __device__ int32_t operator[](int32_t k) const { return first + k; }
};

// Both kinds of lines have `extent` rows or columns of the grid from `first` on, and the list over which they are
// summed.
struct BlockRow {
  int32_t first, extent;
  int32_t start, run;  // the values of its row r are start + r * run + [0, run)
  KeptList list;       // columns

  __device__ BlockRow(const BlockIndex& index, int32_t i) {
    first = i * index.block_height;
    extent = min(index.block_height, index.rows - first);
    start = index.start[i];
    run = (index.start[i + 1] - start) / extent;
    list = {index.col + index.ptr[i], index.block_width, run};
  }
};

struct BlockColumn {
  int32_t first, extent;
  const int32_t* orders;
  KeptList list;  // rows

  __device__ BlockColumn(const BlockIndex& index, int32_t j) {
    first = j * index.block_width;
    extent = min(index.block_width, index.cols - first);
    const int32_t begin = index.col_ptr[j], end = index.col_ptr[j + 1];
    orders = index.order + begin;
    list = {index.row + begin, index.block_height, (end - begin) * index.block_height};
    if (end > begin) list.length -= max(0, (index.row[end - 1] + 1) * index.block_height - index.rows);
  }

  // Where the values of kept row k begin; there are `extent` of them.
  __device__ int32_t position(const BlockIndex& index, int32_t k) const {
    const int32_t number = static_cast<uint32_t>(k) / static_cast<uint32_t>(index.block_height);
    const BlockRow row(index, list.blocks[number]);
    const int32_t before = static_cast<int32_t>(index.col + orders[number] - row.list.blocks) * index.block_width;
    return row.start + (k - number * index.block_height) * row.run + before;
  }
};

// Entries [begin, end) of a list.
struct Walk {
  int32_t begin, end;

  __device__ int32_t steps(int32_t depth) const { return (end - begin + depth - 1) / depth; }
};

// Lines differ in length, so their lists are cut into segments of 2^shift entries (31: of any length), and a thread
// block takes one: no line, however long, makes the others wait. Segment s of line i is item before(i) + i + s, so that
// the host knows how many items suffice for any topology (segment_items), and item numbers of different lines never
// meet. Some items are beyond their line's end; the first one of a line never is, though its list may be empty.
struct Segments {
  const int32_t* ptr;  // [lines + 1]: blocks before each line
  int32_t lines, side, shift;

  __device__ int32_t length() const { return shift == 31 ? INT32_MAX : 1 << shift; }

  __device__ int32_t before(int32_t line) const {
    return static_cast<int32_t>(static_cast<int64_t>(ptr[line]) * side >> shift);
  }

  // The line to which an item belongs. All lanes of the warp must ask, for the same item.
  __device__ int32_t line_of(int32_t item) const {
    const int32_t lane = static_cast<int32_t>(threadIdx.x) % 32;
    int32_t low = 0, high = lines;
    while (high - low > 1) {
      const int32_t stride = (high - low + 31) / 32, probe = low + (lane + 1) * stride;
      const bool reached = probe < high && before(probe) + probe <= item;
      low += __popc(__ballot_sync(0xffffffffu, reached)) * stride;
      high = min(high, low + stride);
    }
    return low;
  }

  // Segment `number` of a list; without steps where it is beyond the end.
  __device__ Walk walk(int32_t number, int32_t list_length) const {
    const int64_t begin = static_cast<int64_t>(number) << shift, end = begin + length(), last = list_length;
    return {static_cast<int32_t>(min(begin, last)), static_cast<int32_t>(min(end, last))};
  }
};

// How many items the segments of `blocks` blocks in `lines` lines have.
inline int64_t segment_items(int64_t blocks, int64_t lines, int64_t side, int shift) {
  return (blocks * side >> shift) + lines;
}

}  // namespace snipkern::cuda
