// The product that linear layers and convolutions share: every row of an output sums its entries of a source.
//
// A block makes kProductRows rows of one tile of positions. Its warps take a row each; kLanes of a warp share an entry
// (all of its positions in the tile), so a warp has 32 / kLanes entries in hand, whose sums are added at the end.
// Entries come 32 at a time, one for each lane, decoded into shared memory where all lanes read them. Rows of more than
// kLongRow entries are cut in one part for each warp of the block, and the parts are added in their order. So the order
// of every sum follows from the lists and the sizes alone.
//
// Rows are the fastest in the grid: blocks that run together read the same tile, at first the same places of it because
// lists ascend, and find it in L1 and L2.
#pragma once

#include "cuda/csr_lists.cuh"
#include "cuda/dtype.cuh"

namespace snipkern::cuda {

constexpr int kProductRows = 32;
constexpr int kLongRow = 512;

// As wide as one load brings it.
template <typename Source>
struct alignas(sizeof(typename Source::Tap) + sizeof(typename Source::Sum) <= 16 ? 16 : 8) ProductEntry {
  typename Source::Tap tap;
  typename Source::Sum value;
};

// Adds the entries [begin, end) of a row to `sums`; each group of lanes adds its share of them.
template <typename Source>
__device__ void add_entries(const CsrLists& lists, const typename Source::Element* __restrict__ values,
                            const Source& source, const typename Source::Lane& positions, int64_t row, int32_t begin,
                            int32_t end, ProductEntry<Source>* stage,
                            typename Source::Sum (&sums)[Source::kPositions]) {
  using Sum = typename Source::Sum;
  constexpr int kGroups = kWarpLanes / Source::kLanes;
  const int lane = threadIdx.x % kWarpLanes, group = lane / Source::kLanes;
  int32_t next_index = 0;
  Sum next_value = 0;
  const auto fetch = [&](int32_t entry) {
    if (entry < end) {
      next_index = lists[entry];
      next_value = to_accumulator(values[entry]);
    }
  };
  fetch(begin + lane);
  for (int32_t first = begin; first < end; first += kWarpLanes) {
    ProductEntry<Source> mine{source.nothing(), Sum(0)};
    bool useful = false;
    if (first + lane < end) {
      typename Source::Tap tap;
      useful = source.decode(lists, positions, row, first + lane, next_index, tap);
      if (useful) mine = {tap, next_value};
    }
    // On their way while the entries at hand are multiplied.
    if (end - first > kWarpLanes) fetch(first + kWarpLanes + lane);
    int slot = lane, count = min(end - first, kWarpLanes);
    if (Source::kSelects) {
      const unsigned kept = __ballot_sync(kAllLanes, useful), before = (1u << lane) - 1;
      count = __popc(kept);
      slot = useful ? __popc(kept & before) : count + __popc(~kept & before);
    }
    __syncwarp();
    stage[slot] = mine;
    __syncwarp();
#pragma unroll 1
    for (int step = 0; step * kGroups < count; step += Source::kUnroll) {
      Sum loaded[Source::kUnroll][Source::kPositions];
      Sum value[Source::kUnroll];
#pragma unroll
      for (int i = 0; i < Source::kUnroll; ++i) {
        const ProductEntry<Source> entry = stage[(step + i) * kGroups + group];
        value[i] = entry.value;
        source.load(positions, entry.tap, loaded[i]);
      }
#pragma unroll
      for (int i = 0; i < Source::kUnroll; ++i) {
#pragma unroll
        for (int p = 0; p < Source::kPositions; ++p) sums[p] = fma(value[i], loaded[i][p], sums[p]);
      }
    }
  }
}

// `Output` places sums[row][position] of the tile where they belong.
template <typename Source, typename Output>
__global__ void __launch_bounds__(Source::kWarps* kWarpLanes, Source::kBlocks)
    csr_product(CsrLists lists, const typename Source::Element* __restrict__ values, int64_t rows, int64_t row_blocks,
                Source source, Output output) {
  using Sum = typename Source::Sum;
  constexpr int kWarps = Source::kWarps, kThreads = kWarps * kWarpLanes;
  constexpr int kPitch = Source::kTile + 1;  // so that a column of the tile lies in as many banks as it has rows
  __shared__ Sum tile[kProductRows * kPitch];
  __shared__ Sum parts[kWarps * Source::kTile];
  __shared__ ProductEntry<Source> stages[kWarps * kWarpLanes];
  const int warp = threadIdx.x / kWarpLanes, lane = threadIdx.x % kWarpLanes, place = lane % Source::kLanes;
  const int64_t tile_number = blockIdx.x / row_blocks, first_row = blockIdx.x % row_blocks * kProductRows;
  const typename Source::Lane positions = source.lane(tile_number, place);

  const auto sum_to = [&](int64_t row, int32_t begin, int32_t end, Sum* target) {
    Sum sums[Source::kPositions] = {};
    add_entries(lists, values, source, positions, row, begin, end, stages + warp * kWarpLanes, sums);
#pragma unroll
    for (int p = 0; p < Source::kPositions; ++p) {
#pragma unroll
      for (int other = Source::kLanes; other < kWarpLanes; other *= 2) {
        sums[p] += __shfl_xor_sync(kAllLanes, sums[p], other);
      }
      if (lane < Source::kLanes) target[Source::place(place, p)] = sums[p];
    }
  };

  const int64_t mine = first_row + lane;
  const bool is_long = mine < rows && lists.end(mine) - lists.begin(mine) > kLongRow;
  const unsigned long_rows = __ballot_sync(kAllLanes, is_long);
  for (int r = warp; r < kProductRows; r += kWarps) {
    const int64_t row = first_row + r;
    if (row < rows && !(long_rows >> r & 1)) sum_to(row, lists.begin(row), lists.end(row), tile + r * kPitch);
  }
  for (unsigned left = long_rows; left != 0; left &= left - 1) {
    const int r = __ffs(static_cast<int>(left)) - 1;
    const int64_t row = first_row + r;
    const int32_t begin = lists.begin(row), end = lists.end(row);
    const int32_t part = ((end - begin - 1) / (kWarps * kWarpLanes) + 1) * kWarpLanes;
    const int64_t from = begin + static_cast<int64_t>(part) * warp;
    const int32_t to = static_cast<int32_t>(min(from + part, static_cast<int64_t>(end)));
    sum_to(row, static_cast<int32_t>(min(from, static_cast<int64_t>(end))), to, parts + warp * Source::kTile);
    __syncthreads();
    for (int p = threadIdx.x; p < Source::kTile; p += kThreads) {
      Sum sum = parts[p];
      for (int w = 1; w < kWarps; ++w) sum += parts[w * Source::kTile + p];
      tile[r * kPitch + p] = sum;
    }
    __syncthreads();
  }
  __syncthreads();
  output.template store<Source::kTile, kThreads>(tile, kPitch, tile_number, first_row, rows);
}

template <typename Source, typename Output>
cudaError_t launch_csr_product(const CsrLists& lists, const void* values, int64_t rows, int64_t tiles,
                               const Source& source, const Output& output, cudaStream_t stream) {
  const int64_t row_blocks = (rows + kProductRows - 1) / kProductRows;
  if (row_blocks * tiles == 0) return cudaGetLastError();
  SNIPKERN_LAUNCH((csr_product<Source, Output>), dim3(static_cast<unsigned>(row_blocks * tiles)),
                  dim3(Source::kWarps * kWarpLanes), 0, stream, lists,
                  static_cast<const typename Source::Element*>(values), rows, row_blocks, source, output);
  return cudaGetLastError();
}

// Values in the order of the transposed lists: once for each call, as every tile reads them anew and as neighbours.
template <typename T>
__global__ void __launch_bounds__(256) gather_values(const T* __restrict__ values, const int32_t* __restrict__ order,
                                                     int64_t nnz, T* __restrict__ target) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t k = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; k < nnz; k += step) {
    target[k] = values[order[k]];
  }
}

template <typename T>
void to_list_order(const void* values, const int32_t* order, int64_t nnz, void* target, cudaStream_t stream) {
  if (nnz == 0) return;
  const int64_t blocks = (nnz + 1023) / 1024;
  SNIPKERN_LAUNCH((gather_values<T>), dim3(static_cast<unsigned>(blocks)), dim3(256), 0, stream,
                  static_cast<const T*>(values), order, nnz, static_cast<T*>(target));
}

}  // namespace snipkern::cuda
