// The rows or columns of kept weights: in 16 bits where the dimension allows it. Kernels stream them from memory anew
// for every tile, and they are the largest part of what a sparse layer holds besides its values.
#pragma once

#include <cstdint>

namespace snipkern {

inline bool fits_16_bits(int64_t dimension) { return dimension <= 65536; }

// int32 words that `nnz` entries of a dimension take in a topology tensor.
inline int64_t index_words(int64_t nnz, int64_t dimension) { return fits_16_bits(dimension) ? (nnz + 1) / 2 : nnz; }

struct IndexList {
  const void* data = nullptr;
  bool narrow = false;  // uint16_t, else int32_t

  int32_t operator[](int64_t k) const {
    return narrow ? static_cast<const uint16_t*>(data)[k] : static_cast<const int32_t*>(data)[k];
  }
};

// Calls body with the plain array, so that loops over it do not ask for its type.
template <typename Body>
void with_index(const IndexList& index, const Body& body) {
  if (index.narrow) {
    body(static_cast<const uint16_t*>(index.data));
  } else {
    body(static_cast<const int32_t*>(index.data));
  }
}

}  // namespace snipkern
