// Plain loops, which -O3 unrolls, and little to compile.
#pragma GCC optimize("O3")

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

// The same for a transposed operand: some columns at a time, few enough for the ways of a cache set.
template <size_t kBytes>
void gather_transposed(const Operand& operand, int64_t begin, int64_t count, char* to) {
  constexpr int64_t kColumns = 8, kMostAhead = 512;
  const char* data = static_cast<const char*>(operand.data);
  const int64_t cols = operand.sizes[1], end = begin + count;
  const int64_t first = begin / cols, last = (end - 1) / cols;
  for (int64_t left = 0; left < cols; left += kColumns) {
    // The next columns lie in other pages, where the processor does not look ahead by itself.
    for (int64_t col = left + kColumns; col < std::min(cols, left + 2 * kColumns); ++col) {
      const char* from = data + (first * operand.strides[0] + col * operand.strides[1]) * static_cast<int64_t>(kBytes);
      const int64_t bytes = (last + 1 - first) * operand.strides[0] * static_cast<int64_t>(kBytes);
      for (int64_t line = 0; line < std::min(bytes, kMostAhead); line += 64) __builtin_prefetch(from + line);
    }
    for (int64_t row = first; row <= last; ++row) {
      const int64_t stop = std::min({cols, left + kColumns, end - row * cols});
      for (int64_t col = std::max(left, begin - row * cols); col < stop; ++col) {
        const int64_t offset = row * operand.strides[0] + col * operand.strides[1];
        std::memcpy(to + (row * cols + col - begin) * static_cast<int64_t>(kBytes),
                    data + offset * static_cast<int64_t>(kBytes), kBytes);
      }
    }
  }
}

template <size_t kBytes>
void gather_any(const Operand& operand, int64_t begin, int64_t count, void* to) {
  char* bytes = static_cast<char*>(to);
  if (is_transposed(operand) && count > operand.sizes[1]) {
    gather_transposed<kBytes>(operand, begin, count, bytes);
  } else {
    gather_bytes<kBytes>(operand, begin, count, bytes);
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
      return gather_any<8>(operand, begin, count, to);
    case 4:
      return gather_any<4>(operand, begin, count, to);
    default:
      return gather_any<2>(operand, begin, count, to);
  }
}

}  // namespace snipkern
