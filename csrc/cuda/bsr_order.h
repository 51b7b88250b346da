// Features in the order of a block grid that has its own. Products with such a weight gather their inputs into scratch
// memory before and their output after, for one more read and write of each; kernels then know of no order.
#pragma once

#include "cuda/platform.cuh"

namespace snipkern::cuda {

// order[place[i]] = i for i < size.
cudaError_t invert_places(const int32_t* place, int32_t size, int32_t* order, cudaStream_t stream);

// to[r][i] = from[r][order[i]] for matrices [rows, features] whose elements have 2, 4 or 8 bytes.
cudaError_t gather_features(const void* from, const int32_t* order, int64_t rows, int32_t features, int element_bytes,
                            void* to, cudaStream_t stream);

}  // namespace snipkern::cuda
