#include "cuda/bsr_order.h"

#include <algorithm>

namespace snipkern::cuda {
namespace {

constexpr int kThreadsOf = 256;
constexpr int64_t kRowsOf = 16;         // rows in which a thread gathers the feature it has looked up
constexpr int64_t kMostOfGrid = 65535;  // of a grid's second dimension

__global__ void __launch_bounds__(kThreadsOf) invert_places_kernel(const int32_t* place, int32_t size, int32_t* order) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreadsOf + threadIdx.x;
  if (i < size) order[place[i]] = static_cast<int32_t>(i);
}

// Writes are in order; reads find the row's lines in the L1 cache after the first of their elements.
template <typename Bits>
__global__ void __launch_bounds__(kThreadsOf)
    gather_features_kernel(const Bits* from, const int32_t* order, int64_t rows, int32_t features, Bits* to) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreadsOf + threadIdx.x;
  if (i >= features) return;
  const int32_t feature = order[i];
  for (int64_t first = blockIdx.y * kRowsOf; first < rows; first += gridDim.y * kRowsOf) {
    const int64_t last = min(rows, first + kRowsOf);
#pragma unroll 4
    for (int64_t row = first; row < last; ++row) to[row * features + i] = from[row * features + feature];
  }
}

template <typename Bits>
void gather(const void* from, const int32_t* order, int64_t rows, int32_t features, void* to, cudaStream_t stream) {
  const dim3 grid((features + kThreadsOf - 1) / kThreadsOf, std::min((rows + kRowsOf - 1) / kRowsOf, kMostOfGrid));
  SNIPKERN_LAUNCH((gather_features_kernel<Bits>), grid, dim3(kThreadsOf), 0, stream, static_cast<const Bits*>(from),
                  order, rows, features, static_cast<Bits*>(to));
}

}  // namespace

cudaError_t invert_places(const int32_t* place, int32_t size, int32_t* order, cudaStream_t stream) {
  if (size == 0) return cudaSuccess;
  SNIPKERN_LAUNCH(invert_places_kernel, dim3((size + kThreadsOf - 1) / kThreadsOf), dim3(kThreadsOf), 0, stream, place,
                  size, order);
  return cudaGetLastError();
}

cudaError_t gather_features(const void* from, const int32_t* order, int64_t rows, int32_t features, int element_bytes,
                            void* to, cudaStream_t stream) {
  if (rows == 0 || features == 0) return cudaSuccess;
  if (element_bytes == 2) {
    gather<uint16_t>(from, order, rows, features, to, stream);
  } else if (element_bytes == 4) {
    gather<uint32_t>(from, order, rows, features, to, stream);
  } else {
    gather<uint64_t>(from, order, rows, features, to, stream);
  }
  return cudaGetLastError();
}

}  // namespace snipkern::cuda
