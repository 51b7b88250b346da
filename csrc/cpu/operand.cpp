#include "cpu/operand.h"

#include <algorithm>
#include <cstring>

namespace snipkern {
namespace {

template <size_t kBytes>
void gather_bytes(const Operand& operand, int64_t begin, int64_t count, char* to) {
  const int inner = operand.dims - 1;
  int64_t at[Operand::kMaxDims];
  int64_t offset = 0, rest = begin;
  for (int d = inner; d >= 0; --d) {
    at[d] = rest % operand.sizes[d];
    rest /= operand.sizes[d];
    offset += at[d] * operand.strides[d];
  }
  const char* data = static_cast<const char*>(operand.data);
  while (true) {
    const int64_t run = std::min(count, operand.sizes[inner] - at[inner]);
    const int64_t step = operand.strides[inner];
    for (int64_t i = 0; i < run; ++i) {
      std::memcpy(to + i * kBytes, data + (offset + i * step) * static_cast<int64_t>(kBytes), kBytes);
    }
    count -= run;
    if (count == 0) return;
    to += run * kBytes;
    at[inner] += run;
    offset += run * step;
    for (int d = inner; at[d] == operand.sizes[d]; --d) {
      offset += operand.strides[d - 1] - at[d] * operand.strides[d];
      at[d] = 0;
      ++at[d - 1];
    }
  }
}

}  // namespace

size_t element_size(DType dtype) {
  switch (dtype) {
    case DType::kDouble:
      return 8;
    case DType::kFloat:
      return 4;
    default:
      return 2;
  }
}

void merge_dims(Operand& operand) {
  int dims = 0;
  for (int d = 0; d < operand.dims; ++d) {
    const int64_t size = operand.sizes[d], stride = operand.strides[d];
    if (size == 1) continue;
    if (dims > 0 && operand.strides[dims - 1] == size * stride) {
      operand.sizes[dims - 1] *= size;
      operand.strides[dims - 1] = stride;
    } else {
      operand.sizes[dims] = size;
      operand.strides[dims++] = stride;
    }
  }
  if (dims == 0) {
    operand.sizes[0] = 1;
    operand.strides[0] = 1;
    dims = 1;
  }
  operand.dims = dims;
}

void gather(const Operand& operand, int64_t begin, int64_t count, void* to) {
  if (count == 0) return;
  switch (element_size(operand.dtype)) {
    case 8:
      return gather_bytes<8>(operand, begin, count, static_cast<char*>(to));
    case 4:
      return gather_bytes<4>(operand, begin, count, static_cast<char*>(to));
    default:
      return gather_bytes<2>(operand, begin, count, static_cast<char*>(to));
  }
}

}  // namespace snipkern
