#include "cuda/bsr_splits.cuh"
#include "cuda/sddmm_bsr.h"

namespace snipkern::cuda {
namespace {

constexpr int kFeatures = 64;                 // of a thread block
constexpr int kLanes = kThreads / kFeatures;  // that share the samples of a feature
constexpr int kRowsAtOnce = 8;                // loads of a thread on their way

template <typename T>
__global__ void __launch_bounds__(kThreads)
    feature_sums_kernel(const T* x, int64_t batch, int32_t features, Splits splits, accumulator_t<T>* parts, T* sums) {
  using Sum = accumulator_t<T>;
  __shared__ Sum of_lane[kLanes][kFeatures];
  const int place = static_cast<int>(threadIdx.x) % kFeatures, lane = static_cast<int>(threadIdx.x) / kFeatures;
  const int32_t feature = static_cast<int32_t>(blockIdx.x) * kFeatures + place;
  const int64_t first = blockIdx.y * splits.length, last = min(batch, first + splits.length);
  Sum sum = 0;
  if (feature < features) {
#pragma unroll kRowsAtOnce
    for (int64_t row = first + lane; row < last; row += kLanes) sum += to_accumulator(x[row * features + feature]);
  }
  of_lane[lane][place] = sum;
  __syncthreads();
  if (lane > 0 || feature >= features) return;
  for (int other = 1; other < kLanes; ++other) sum += of_lane[other][place];
  if (splits.count == 1) {
    sums[feature] = round_to<T>(sum);
  } else {
    parts[blockIdx.y * static_cast<int64_t>(features) + feature] = sum;
  }
}

}  // namespace

cudaError_t feature_sums(const FeatureSums& call, Scratch& scratch, cudaStream_t stream) {
  const int64_t tiles = pieces(call.features, kFeatures);
  const Splits splits(call.batch, tiles);
  void* const parts = scratch.take_bytes(splits.scratch(call.features, sum_bytes(call.dtype)));
  if (scratch.counting() || call.features == 0) return cudaSuccess;
  return with_dtype(call.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    auto* const of_parts = static_cast<accumulator_t<T>*>(parts);
    SNIPKERN_LAUNCH((feature_sums_kernel<T>), dim3(static_cast<unsigned>(tiles), static_cast<unsigned>(splits.count)),
                    dim3(kThreads), 0, stream, static_cast<const T*>(call.x), call.batch, call.features, splits,
                    of_parts, static_cast<T*>(call.sums));
    return join_splits<T>(of_parts, splits, call.features, static_cast<T*>(call.sums), stream);
  });
}

}  // namespace snipkern::cuda
