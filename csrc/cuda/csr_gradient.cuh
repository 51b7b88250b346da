// The gradient of kept weights, for linear layers and convolutions: every entry of a row is the product of that row of
// a gradient with what the entry reads of a source, summed over all positions.
//
// A block has kGradientRows rows and a range of tiles of positions. Rows are cut in segments of kSegmentEntries, which
// its warps take in turn, so a long row keeps all of them busy. For each tile a warp holds its row's gradient in
// registers and goes through the segment; the sums stay in shared memory. Where layers have too few rows to fill a GPU,
// the tiles are split over blocks and the parts are added in their order. How they are split follows from sizes alone.
#pragma once

#include "cuda/csr_lists.cuh"
#include "cuda/dtype.cuh"

namespace snipkern::cuda {

constexpr int kGradientWarps = 8;
constexpr int kGradientThreads = kGradientWarps * kWarpLanes;
constexpr int kGradientRows = 32;
constexpr int kSegmentEntries = 256;
constexpr int kEntriesAtOnce = 4;         // of a group of lanes
constexpr int64_t kGradientBlocks = 512;  // that are enough for any GPU
constexpr int64_t kMostSplits = 256;

// How the positions are split.
struct GradientSplits {
  int64_t row_blocks, splits, tiles_of_split;

  GradientSplits(int64_t rows, int64_t tiles) {
    row_blocks = (rows + kGradientRows - 1) / kGradientRows;
    int64_t wanted = row_blocks == 0 ? 1 : (kGradientBlocks + row_blocks - 1) / row_blocks;
    wanted = wanted < kMostSplits ? wanted : kMostSplits;
    wanted = wanted < tiles ? wanted : tiles;
    tiles_of_split = wanted == 0 ? 0 : (tiles + wanted - 1) / wanted;
    splits = tiles_of_split == 0 ? 1 : (tiles + tiles_of_split - 1) / tiles_of_split;
  }

  // Sums of the parts, [splits][nnz] and then [splits][rows] for a bias.
  int64_t scratch_bytes(int64_t nnz, int64_t rows, bool with_bias, int sum_size) const {
    return splits == 1 ? 0 : splits * (nnz + (with_bias ? rows : 0)) * sum_size;
  }
};

// As wide as one load brings it.
template <typename Source>
struct alignas(sizeof(typename Source::Tap) > 8 ? 16 : 8) GradientEntry {
  typename Source::Tap tap;
};

// Adds kEntriesAtOnce sums over the lanes that differ in their last bits; a lane gets the sum that these number.
template <typename Sum>
__device__ Sum sum_halving(Sum (&sums)[kEntriesAtOnce], int lane) {
#pragma unroll
  for (int half = kEntriesAtOnce / 2; half > 0; half /= 2) {
    const bool upper = (lane & half) != 0;
#pragma unroll
    for (int i = 0; i < half; ++i) {
      const Sum given = upper ? sums[i] : sums[i + half];
      const Sum kept = upper ? sums[i + half] : sums[i];
      sums[i] = kept + __shfl_xor_sync(kAllLanes, given, half);
    }
  }
  return sums[0];
}

// Adds what the tile contributes to the entries [begin, end) of a row, at most kSegmentEntries, to totals[0 ...].
template <typename Source>
__device__ void add_tile(const CsrLists& lists, const Source& source, const typename Source::Lane& positions,
                         const typename Source::Sum (&grad)[Source::kPositions], int64_t row, int32_t begin,
                         int32_t end, GradientEntry<Source>* stage, typename Source::Sum* totals) {
  using Sum = typename Source::Sum;
  constexpr int kGroups = kWarpLanes / Source::kLanes;
  const int lane = threadIdx.x % kWarpLanes, group = lane / Source::kLanes;
  int32_t next = begin + lane < end ? lists[begin + lane] : 0;
  for (int32_t first = begin; first < end; first += kWarpLanes) {
    GradientEntry<Source> mine{source.nothing()};
    if (first + lane < end) source.decode(lists, positions, row, first + lane, next, mine.tap);
    if (end - first > kWarpLanes + lane) next = lists[first + kWarpLanes + lane];
    __syncwarp();
    stage[lane] = mine;
    __syncwarp();
    const int count = min(end - first, kWarpLanes);
    for (int pass = 0; pass < count; pass += kEntriesAtOnce * kGroups) {
      Sum sums[kEntriesAtOnce];
#pragma unroll
      for (int i = 0; i < kEntriesAtOnce; ++i) {
        const GradientEntry<Source> entry = stage[pass + i * kGroups + group];
        Sum loaded[Source::kPositions];
        source.load(positions, entry.tap, loaded);
        sums[i] = 0;
#pragma unroll
        for (int p = 0; p < Source::kPositions; ++p) sums[i] = fma(grad[p], loaded[p], sums[i]);
      }
      Sum sum = sum_halving(sums, lane);
#pragma unroll
      for (int other = kEntriesAtOnce; other < Source::kLanes; other *= 2) {
        sum += __shfl_xor_sync(kAllLanes, sum, other);
      }
      const int place = lane % Source::kLanes, number = pass + place * kGroups + group;
      if (place < kEntriesAtOnce && number < count) totals[first - begin + number] += sum;
    }
  }
}

// Results go to values [nnz] and bias [rows] (or null) where splits == 1, else to the parts.
template <typename Source>
__global__ void __launch_bounds__(kGradientThreads, Source::kGradientBlocks)
    csr_gradient(CsrLists lists, int64_t nnz, int64_t rows, int64_t row_blocks, int64_t tiles, int64_t tiles_of_split,
                 Source source, typename Source::Element* __restrict__ values,
                 typename Source::Element* __restrict__ bias, typename Source::Sum* __restrict__ parts,
                 typename Source::Sum* __restrict__ bias_parts) {
  using Sum = typename Source::Sum;
  using Element = typename Source::Element;
  __shared__ Sum all_totals[kGradientWarps * kSegmentEntries];
  __shared__ GradientEntry<Source> stages[kGradientWarps * kWarpLanes];
  const int warp = threadIdx.x / kWarpLanes, lane = threadIdx.x % kWarpLanes;
  const int64_t split = blockIdx.x / row_blocks, first_row = blockIdx.x % row_blocks * kGradientRows;
  const int64_t first_tile = split * tiles_of_split;
  const int tile_count = static_cast<int>(min(tiles_of_split, tiles - first_tile));
  Sum* totals = all_totals + warp * kSegmentEntries;

  // Segments of the rows up to this lane's; an empty row has one where its bias is wanted.
  const int64_t own_row = first_row + lane;
  const int32_t own_length = own_row < rows ? lists.end(own_row) - lists.begin(own_row) : 0;
  int32_t up_to_here = own_length / kSegmentEntries + (own_length % kSegmentEntries != 0 ? 1 : 0);
  if (bias != nullptr && own_row < rows) up_to_here = max(up_to_here, 1);
#pragma unroll
  for (int distance = 1; distance < kWarpLanes; distance *= 2) {
    const int32_t before = __shfl_up_sync(kAllLanes, up_to_here, distance);
    if (lane >= distance) up_to_here += before;
  }
  const int32_t segments = __shfl_sync(kAllLanes, up_to_here, kWarpLanes - 1);

  for (int32_t number = warp; number < segments; number += kGradientWarps) {
    const int r = __popc(__ballot_sync(kAllLanes, up_to_here <= number));
    const int32_t up_to_last = __shfl_sync(kAllLanes, up_to_here, max(r - 1, 0));
    const int32_t before = r == 0 ? 0 : up_to_last;
    const int64_t row = first_row + r;
    const int32_t begin = lists.begin(row) + (number - before) * kSegmentEntries;
    const int32_t end = min(lists.end(row) - begin, kSegmentEntries) + begin;
    for (int i = lane; i < kSegmentEntries; i += kWarpLanes) totals[i] = 0;
    __syncwarp();
    Sum row_sum = 0;
    for (int t = 0; t < tile_count; ++t) {
      const int64_t tile = first_tile + t;
      Sum grad[Source::kPositions];
      const typename Source::Lane positions = source.lane(tile, lane % Source::kLanes);
      source.load_row(positions, row, grad);
#pragma unroll
      for (int p = 0; p < Source::kPositions; ++p) row_sum += grad[p];
      add_tile(lists, source, positions, grad, row, begin, end, stages + warp * kWarpLanes, totals);
    }
    __syncwarp();
    for (int32_t i = lane; i < end - begin; i += kWarpLanes) {
      if (parts == nullptr) {
        values[begin + i] = round_to<Element>(totals[i]);
      } else {
        parts[split * nnz + begin + i] = totals[i];
      }
    }
    if (bias != nullptr && number == before) {
#pragma unroll
      for (int other = 1; other < Source::kLanes; other *= 2) row_sum += __shfl_xor_sync(kAllLanes, row_sum, other);
      if (lane == 0) {
        if (parts == nullptr) {
          bias[row] = round_to<Element>(row_sum);
        } else {
          bias_parts[split * rows + row] = row_sum;
        }
      }
    }
    __syncwarp();
  }
}

template <typename T>
__global__ void __launch_bounds__(256) add_gradient_parts(const accumulator_t<T>* __restrict__ parts, int64_t splits,
                                                          int64_t count, T* __restrict__ target) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= count) return;
  accumulator_t<T> sum = parts[i];
  for (int64_t split = 1; split < splits; ++split) sum += parts[split * count + i];
  target[i] = round_to<T>(sum);
}

template <typename T>
void launch_add_gradient_parts(const accumulator_t<T>* parts, int64_t splits, int64_t count, T* target,
                               cudaStream_t stream) {
  if (count == 0) return;
  SNIPKERN_LAUNCH((add_gradient_parts<T>), dim3(static_cast<unsigned>((count + 255) / 256)), dim3(256), 0, stream,
                  parts, splits, count, target);
}

// `bias` may be null; `scratch` holds GradientSplits::scratch_bytes().
template <typename Source>
cudaError_t launch_csr_gradient(const CsrLists& lists, int64_t nnz, int64_t rows, const Source& source, void* values,
                                void* bias, void* scratch, cudaStream_t stream) {
  using Element = typename Source::Element;
  using Sum = typename Source::Sum;
  const int64_t tiles = source.tiles();
  const GradientSplits splits(rows, tiles);
  if (splits.row_blocks == 0 || (nnz == 0 && bias == nullptr)) return cudaGetLastError();
  const bool split = splits.splits > 1;
  Sum* parts = split ? static_cast<Sum*>(scratch) : nullptr;
  Sum* bias_parts = split ? parts + splits.splits * nnz : nullptr;
  SNIPKERN_LAUNCH((csr_gradient<Source>), dim3(static_cast<unsigned>(splits.row_blocks * splits.splits)),
                  dim3(kGradientThreads), 0, stream, lists, nnz, rows, splits.row_blocks, tiles, splits.tiles_of_split,
                  source, static_cast<Element*>(values), static_cast<Element*>(bias), parts, bias_parts);
  if (split) {
    launch_add_gradient_parts<Element>(parts, splits.splits, nnz, static_cast<Element*>(values), stream);
    if (bias != nullptr) {
      launch_add_gradient_parts<Element>(bias_parts, splits.splits, rows, static_cast<Element*>(bias), stream);
    }
  }
  return cudaGetLastError();
}

}  // namespace snipkern::cuda
