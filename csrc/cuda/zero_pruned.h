// Zeroes the entries of a dense tensor that its mask has pruned, whatever was in them.
#pragma once

#include <cstdint>

#include "cuda/platform.cuh"

namespace snipkern::cuda {

struct ZeroPruned {
  int element_bytes;     // 2, 4 or 8: what an element means is of no importance
  const void* from;      // [numel], aligned to an element
  const int64_t* words;  // [ceil(numel / 64)]: bit i % 64 of word i / 64 tells whether element i is kept
  int64_t numel;
  void* to;  // [numel], aligned to an element; where it is `from`, only what changes is written
};

cudaError_t zero_pruned(const ZeroPruned& call, cudaStream_t stream);

}  // namespace snipkern::cuda
