// A tensor of any strides, read as the flat row-major sequence of its elements. Kernels that must not
// copy their input (a transposed or an expanded weight can be larger than the memory left) take one.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cpu/dtype.h"

namespace snipkern {

struct Operand {
  static constexpr int kMaxDims = 64;

  DType dtype;
  const void* data;
  int dims;
  int64_t sizes[kMaxDims], strides[kMaxDims];  // strides in elements; outermost dimension first
};

size_t element_size(DType dtype);

// Drops dimensions of size 1 and merges neighbours that lie in memory as one; at least one remains.
void merge_dims(Operand& operand);

// Whether the elements lie in memory in row-major order without gaps; needs merged dimensions.
inline bool is_dense(const Operand& operand) { return operand.dims == 1 && operand.strides[0] == 1; }

// Whether neighbours in memory are neighbours in a column: gathering several rows at once then uses whole cache lines.
inline bool is_transposed(const Operand& operand) {
  return operand.dims == 2 && operand.strides[0] < operand.strides[1];
}

// Copies elements [begin, begin + count) of the flat sequence to `to`, unconverted.
void gather(const Operand& operand, int64_t begin, int64_t count, void* to);

}  // namespace snipkern
