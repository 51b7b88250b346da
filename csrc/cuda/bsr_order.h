// Features in the order of a block grid that has its own. Products with such a weight gather their inputs into scratch
// memory before and their output after, for one more read and write of each; kernels then know of no order.
#pragma once

#include "cuda/platform.cuh"
#include "cuda/scratch.h"

namespace snipkern::cuda {

// order[place[i]] = i for i < size.
cudaError_t invert_places(const int32_t* place, int32_t size, int32_t* order, cudaStream_t stream);

// to[r][i] = from[r][order[i]] for matrices [rows, features] whose elements have 2, 4 or 8 bytes.
cudaError_t gather_features(const void* from, const int32_t* order, int64_t rows, int32_t features, int element_bytes,
                            void* to, cudaStream_t stream);

// Does both in scratch memory, and nothing after an error or where the memory is only counted.
class Reordering {
 public:
  Reordering(Scratch& scratch, int element_bytes, cudaStream_t stream)
      : scratch_(scratch), element_bytes_(element_bytes), stream_(stream) {}

  const int32_t* inverse(const int32_t* place, int32_t size) {
    int32_t* const order = scratch_.take<int32_t>(size);
    if (running()) error_ = invert_places(place, size, order, stream_);
    return order;
  }

  void* matrix(int64_t rows, int32_t features) { return scratch_.take_bytes(rows * features * element_bytes_); }

  const void* gathered(const void* from, const int32_t* order, int64_t rows, int32_t features) {
    void* const to = matrix(rows, features);
    gather(from, order, rows, features, to);
    return to;
  }

  void gather(const void* from, const int32_t* order, int64_t rows, int32_t features, void* to) {
    if (running()) error_ = gather_features(from, order, rows, features, element_bytes_, to, stream_);
  }

  void then(cudaError_t error) {
    if (error_ == cudaSuccess) error_ = error;
  }
  cudaError_t error() const { return error_; }

 private:
  bool running() const { return !scratch_.counting() && error_ == cudaSuccess; }

  Scratch& scratch_;
  int element_bytes_;
  cudaStream_t stream_;
  cudaError_t error_ = cudaSuccess;
};

}  // namespace snipkern::cuda
