// How large an image may be on a GPU.
#pragma once

#include <algorithm>

#include "bindings/checks.h"
#include "cpu/conv_axis.h"

namespace snipkern::cuda {

// Within an image, kernels count in 32 bits; samples and channels may be as many as there is memory for.
inline void require_small_images(const char* op, const Conv2dShape& shape) {
  constexpr int64_t kLimit = int64_t{1} << 29;
  int64_t largest = std::max(shape.size[0] * shape.size[1], shape.out_size[0] * shape.out_size[1]);
  for (int i = 0; i < 2; ++i) {
    largest = std::max({largest, shape.stride[i], shape.padding[i], shape.kernel[i] * shape.dilation[i]});
  }
  SNIPKERN_REQUIRE(largest < kLimit, op, largest,
                   "an image's pixels, the stride, the padding and the dilated kernel must be below 2^29");
}

}  // namespace snipkern::cuda
