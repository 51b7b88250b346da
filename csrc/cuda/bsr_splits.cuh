// Sums over many samples, cut into parts of a fixed length so that a few sums still occupy the device, and joined in
// their order: the same bits on every device.
#pragma once

#include <algorithm>

#include "cuda/bsr_lines.cuh"

namespace snipkern::cuda {

struct Splits {
  int64_t count, length;

  // For `items` thread blocks over all samples: enough parts for a large device, none under 512 samples.
  Splits(int64_t samples, int64_t items) {
    constexpr int64_t kItems = 1024, kShortest = 512, kMost = 64, kMultiple = 32;
    const int64_t wanted = std::min({pieces(kItems, std::max<int64_t>(items, 1)), samples / kShortest, kMost});
    length = pieces(pieces(samples, std::max<int64_t>(wanted, 1)), kMultiple) * kMultiple;
    count = std::max<int64_t>(1, samples == 0 ? 1 : pieces(samples, length));
  }
  Splits() = default;

  // Bytes for the parts of `size` sums.
  int64_t scratch(int64_t size, int bytes) const { return count == 1 ? 0 : count * size * bytes; }
};

// Sums of a narrow tile of a block row: to the values, or to one part's place among all parts' sums.
template <typename T>
struct RunPieces {
  using Sum = accumulator_t<T>;
  static constexpr bool kWideInner = true;

  T* values;
  Sum* sums;  // null where there is one part
  int32_t start, run, column, row, last_row;

  __device__ RunPieces(T* values, Sum* all_sums, int64_t parts, int64_t nnz, const BlockRow& line, int32_t begin,
                       int32_t column)
      : values(values),
        sums(parts == 1 ? nullptr : all_sums + blockIdx.y * nnz),
        start(line.start),
        run(line.run),
        column(column),
        row(begin),
        last_row(line.extent) {}

  template <int N>
  __device__ void write(int wide, int narrow, const Sum (&piece)[N]) const {
    const int32_t line = row + narrow, place = column + wide;
    if (line >= last_row || place >= run) return;
    const int32_t position = start + line * run + place;
    if (sums == nullptr) {
      store_piece<T>(values + position, piece, run - place);
    } else {
      store_piece<Sum>(sums + position, piece, run - place);
    }
  }
};

template <typename T>
__global__ void __launch_bounds__(kThreads)
    join_splits_kernel(const accumulator_t<T>* sums, Splits splits, int64_t size, T* to) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= size) return;
  accumulator_t<T> sum = sums[i];
  for (int64_t part = 1; part < splits.count; ++part) sum += sums[part * size + i];
  to[i] = round_to<T>(sum);
}

// to[i] = the sum of all parts' i-th sums. Does nothing for a single part, whose sums are in their place.
template <typename T>
cudaError_t join_splits(const accumulator_t<T>* sums, const Splits& splits, int64_t size, T* to, cudaStream_t stream) {
  if (splits.count > 1 && size > 0) {
    SNIPKERN_LAUNCH((join_splits_kernel<T>), dim3(static_cast<unsigned>(pieces(size, kThreads))), dim3(kThreads), 0,
                    stream, sums, splits, size, to);
  }
  return cudaGetLastError();
}

}  // namespace snipkern::cuda
