#include "cuda/spmm_csr.h"

#include "cuda/csr_product.cuh"
#include "cuda/feature_major.cuh"
#include "cuda/linear_csr.h"

namespace snipkern::cuda {
namespace {

constexpr int kTurnSide = 32;
constexpr int kTurnRows = 8;  // that a block moves at a time

// A tile of 32 x 32 passes through shared memory, so that both sides are read and written along their lines.
template <typename T>
__global__ void __launch_bounds__(kTurnSide* kTurnRows)
    turn_feature_major(const T* __restrict__ source, int64_t batch, int64_t features, int64_t samples, int64_t across,
                       T* __restrict__ target) {
  __shared__ T tile[kTurnSide][kTurnSide + 1];
  const int64_t first_feature = blockIdx.x % across * kTurnSide, first_sample = blockIdx.x / across * kTurnSide;
  const int64_t feature = first_feature + threadIdx.x;
#pragma unroll
  for (int i = threadIdx.y; i < kTurnSide; i += kTurnRows) {
    const int64_t sample = first_sample + i;
    const bool inside = sample < batch && feature < features;
    tile[i][threadIdx.x] = inside ? source[sample * features + feature] : round_to<T>(0);
  }
  __syncthreads();
  const int64_t sample = first_sample + threadIdx.x;
#pragma unroll
  for (int i = threadIdx.y; i < kTurnSide; i += kTurnRows) {
    if (sample < samples && first_feature + i <= features) {
      target[(first_feature + i) * samples + sample] = tile[threadIdx.x][i];
    }
  }
}

// y [batch, outputs]: the lanes of a warp store a sample's outputs, which are neighbours.
template <typename T>
struct BatchMajorOutput {
  T* y;
  const T* bias;  // [outputs] or null
  int64_t batch;

  template <int kTile, int kThreads>
  __device__ void store(const accumulator_t<T>* tile, int pitch, int64_t tile_number, int64_t first_row,
                        int64_t rows) const {
    const int r = threadIdx.x % kProductRows;
    const int64_t row = first_row + r;
    if (row >= rows) return;
    const accumulator_t<T> offset = bias == nullptr ? 0 : to_accumulator(bias[row]);
    for (int p = threadIdx.x / kProductRows; p < kTile; p += kThreads / kProductRows) {
      const int64_t sample = tile_number * kTile + p;
      if (sample < batch) y[sample * rows + row] = round_to<T>(tile[r * pitch + p] + offset);
    }
  }
};

}  // namespace

void to_feature_major(DType dtype, const void* source, int64_t batch, int64_t features, void* target,
                      cudaStream_t stream) {
  const int64_t samples = padded_samples(batch, element_size(dtype));
  const int64_t across = features / kTurnSide + 1, down = (samples + kTurnSide - 1) / kTurnSide;
  if (across * down == 0) return;
  with_dtype(dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    SNIPKERN_LAUNCH((turn_feature_major<T>), dim3(static_cast<unsigned>(across * down)), dim3(kTurnSide, kTurnRows), 0,
                    stream, static_cast<const T*>(source), batch, features, samples, across, static_cast<T*>(target));
  });
}

cudaError_t product_of_feature_major(const SpmmCsr& call, const void* x, void* ordered, cudaStream_t stream) {
  return with_dtype(call.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const void* values = call.values;
    if (call.order != nullptr) {
      to_list_order<T>(call.values, call.order, call.nnz, ordered, stream);
      values = ordered;
    }
    const FeatureMajor<T, 1, false> source{static_cast<const T*>(x), padded_samples(call.batch, sizeof(T)),
                                           call.inputs};
    const BatchMajorOutput<T> output{static_cast<T*>(call.y), static_cast<const T*>(call.bias), call.batch};
    const CsrLists lists{call.ptr, 1, call.index};
    return launch_csr_product(lists, values, call.outputs, source.tiles(), source, output, stream);
  });
}

int64_t spmm_csr_scratch(const SpmmCsr& call) {
  return feature_major_bytes(call.dtype, call.batch, call.inputs) + list_order_bytes(call.dtype, call.order, call.nnz);
}

cudaError_t spmm_csr(const SpmmCsr& call, cudaStream_t stream) {
  char* ordered = static_cast<char*>(call.scratch) + feature_major_bytes(call.dtype, call.batch, call.inputs);
  to_feature_major(call.dtype, call.x, call.batch, call.inputs, call.scratch, stream);
  return product_of_feature_major(call, call.scratch, ordered, stream);
}

}  // namespace snipkern::cuda
