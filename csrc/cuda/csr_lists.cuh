// The lists of kept weights that the CSR kernels walk.
#pragma once

#include "cpu/index_list.h"
#include "cuda/platform.cuh"

namespace snipkern::cuda {

constexpr int kWarpLanes = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

// Row r has the entries ptr[r * lists] ... ptr[(r + 1) * lists] - 1.
struct CsrLists {
  const int32_t* ptr;
  int lists;        // of a row: 1, or one for each tap of a channel
  IndexList index;  // [nnz]

  __device__ int32_t begin(int64_t row) const { return ptr[row * lists]; }
  __device__ int32_t end(int64_t row) const { return ptr[(row + 1) * lists]; }

  __device__ int32_t operator[](int64_t entry) const {
    if (index.narrow) return static_cast<const uint16_t*>(index.data)[entry];
    return static_cast<const int32_t*>(index.data)[entry];
  }

  // Which of a row's lists an entry of that row is in: the last one that begins at or before it.
  __device__ int list_of(int64_t row, int32_t entry) const {
    const int32_t* begins = ptr + row * lists;
    int low = 0, high = lists;
    while (high - low > 1) {
      const int middle = (low + high) / 2;
      if (begins[middle] <= entry) {
        low = middle;
      } else {
        high = middle;
      }
    }
    return low;
  }
};

}  // namespace snipkern::cuda
